package segment

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// trimBytes: what a sealed file is longer than its records is given back to the
// file system only beyond that, since files that keep their length can be used
// again at once.
const trimBytes = 4 << 20

// Roll syncs and seals the active segment, if there is one. The next record
// begins a new one.
func (s *Set) Roll() error {
	if err := s.ready(); err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return s.fail(err)
	}
	return nil
}

// roll ends the active segment and begins the next one. The old one is sealed
// before the new one has its name: only the last segment can have a torn tail.
func (s *Set) roll() error {
	if err := s.finish(); err != nil {
		return err
	}
	return s.begin()
}

// finish seals the active segment. In this order:
//
//  1. The index is appended as a record and synced, with all records before it.
//  2. The seal, which says where it is, is written and synced.
//
// So where there is a seal, everything before the end of the index was durable.
func (s *Set) finish() error {
	w := &s.writer
	if w.active == nil {
		return nil
	}
	sealed := seal{index: w.end}
	index := NewPayload(w.index)
	r := record{kind: kindIndex, sum: index.sum, length: index.length, offset: w.end}
	if err := s.appendRecord(r, index); err != nil {
		return err
	}
	sealed.end = w.end
	if err := s.sync(); err != nil {
		return err
	}
	size := w.active.size
	if w.grows || size-w.end > trimBytes {
		// Zeros behind a segment that grew are for its own next batches only. If they
		// stayed, a short one would count as nearly empty, however full it is.
		size = w.end
	}
	if size < w.active.size || size < w.allocated {
		if err := w.file.Truncate(size); err != nil {
			return fmt.Errorf("trim segment %d: %w", w.active.number, err)
		}
	}
	h := header{number: w.active.number, mark: w.active.mark, store: s.store}
	if err := writeSeal(w.file, h, sealed); err != nil {
		return fmt.Errorf("seal segment %d: %w", w.active.number, err)
	}
	w.forget(0)
	s.mu.Lock()
	w.active.size, w.active.seal = size, sealed
	s.mu.Unlock()
	err := w.file.Close()
	n := w.active.number
	w.active, w.file, w.index = nil, nil, w.index[:0]
	if err != nil {
		return fmt.Errorf("close segment %d: %w", n, err)
	}
	return nil
}

// writeSeal writes both copies of a seal, durably.
func writeSeal(f vfs.File, h header, sealed seal) error {
	b := sealed.encode(h)
	for page := range int64(headPages) {
		if err := writeAt(f, b, page*pageBytes+sealOffset); err != nil {
			return err
		}
	}
	return f.Sync()
}

// writeAt is a WriteAt that takes a short write without an error for one.
func writeAt(f vfs.File, p []byte, off int64) error {
	n, err := f.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

var errNumbers = errors.New("segment numbers are used up")

// begin makes a new segment of a file of the pool, or of a new one. In this
// order: the head is written and synced under the pool's name, the file gets its
// own name, and the directory is synced. So a file that is called a segment has a
// durable head, and a record is written only where its file will be found.
func (s *Set) begin() error {
	w := &s.writer
	if w.last == math.MaxUint32 {
		return errNumbers
	}
	g := &segment{number: w.last + 1}
	if _, err := io.ReadFull(s.random, g.mark[:]); err != nil {
		return fmt.Errorf("draw the mark of segment %d: %w", g.number, err)
	}
	f, name, size, err := s.pool.take()
	if err != nil {
		return fmt.Errorf("create segment %d: %w", g.number, err)
	}
	if err := s.christen(f, name, g); err != nil {
		_ = f.Close()
		return fmt.Errorf("begin segment %d: %w", g.number, err)
	}
	g.size = max(size, headBytes)
	w.active, w.file, w.last = g, f, g.number
	w.end, w.flushed, w.synced = headBytes, headBytes, headBytes
	w.grows, w.forgotten = size < s.limit, 0
	w.ahead, w.sector, w.small, w.allocated, w.past = 0, 0, 0, 0, false
	if sector := f.Sector(); sector <= pageBytes {
		w.sector = int64(sector)
	}
	w.large = w.sector > 0
	if !w.grows {
		w.ahead = size
	}
	if w.arena == nil {
		w.arena = vfs.Aligned(arenaBytesMin)[:0]
		w.pieces = make([][]byte, 0, piecesMax)
	}
	w.arena, w.open, w.tail = w.arena[:0], 0, w.tail[:0]
	s.mu.Lock()
	s.segments[g.number] = g
	s.mu.Unlock()
	return nil
}

// christen gives the pool's file of that name the head and the name of g.
func (s *Set) christen(f vfs.File, name string, g *segment) error {
	if err := writeAt(f, header{number: g.number, mark: g.mark, store: s.store}.encode(), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := s.fs.Rename(name, s.segmentName(g.number)); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// abandon lets go of the active segment after an error.
func (s *Set) abandon() {
	if w := &s.writer; w.active != nil {
		_ = w.file.Close()
		w.active, w.file = nil, nil
	}
}
