package segment

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

var (
	// ErrClosed: the set has been closed.
	ErrClosed = errors.New("segments are closed")
	// ErrDamaged: what lies on the disk is not the record that was written there.
	ErrDamaged = errors.New("record is damaged")
	// ErrGone: the segment has been freed, or never was.
	ErrGone = errors.New("segment is gone")
)

// SegmentBytesDefault is the length at which a segment is full. A larger record
// gets a segment of its own.
const SegmentBytesDefault int64 = 64 << 20

const (
	lockName = "LOCK"
	// segmentSuffix ends the names of segment files, 00000001.seg, and poolSuffix
	// those of files that wait to become one.
	segmentSuffix = ".seg"
	poolSuffix    = ".free"
)

// Options tune a set.
type Options struct {
	// Store names whose records these are, in at most 8 octets. A directory of
	// another store is refused.
	Store string
	// SegmentBytes is the length at which a new segment is begun; 0 is
	// SegmentBytesDefault.
	SegmentBytes int64
	// PoolFiles is how many files are kept that are written already: freed
	// segments, and what Prewrite makes. 0 is none, and every segment grows.
	PoolFiles int
	// Random is where marks are drawn from; nil is crypto/rand. It need not be
	// safe for concurrent use, if nobody else has it.
	Random io.Reader
	// Log gets what is found damaged; nil discards.
	Log *slog.Logger
}

// A Set is an open directory of segments.
type Set struct {
	fs     vfs.FS
	dir    string
	store  [8]byte
	limit  int64
	random io.Reader
	log    *slog.Logger
	lock   io.Closer

	writer writer // only the one who writes touches it
	pool   pool

	// mu is never held over I/O.
	mu       sync.Mutex
	segments map[Number]*segment
	err      error // the latch
	closed   bool
	counts   counts
}

// A segment is one file.
type segment struct {
	number Number
	mark   mark
	size   int64 // length of the file
	seal   seal  // all zero until the segment is sealed
	// readers are those open now.
	//
	// Invariant: a file with readers is not recycled; a freed segment gets none.
	readers int
	freed   bool
	// lost: the head cannot be read, nor any record.
	lost bool
	// worn: something in it could not be read. The file is not used again.
	worn bool
}

type counts struct {
	syncs  uint64
	damage int
	torn   int
}

// Info is what there is to know about one segment without reading it.
type Info struct {
	Number Number
	// Bytes is the length of the file.
	Bytes int64
	// Sealed: nothing more is appended to it.
	Sealed bool
	// Lost: the head of the file cannot be read, so none of its records can.
	Lost bool
}

// Stats is a count of what is there and of what was done since Open.
type Stats struct {
	Segments  int
	Bytes     int64 // length of all segments
	PoolFiles int
	PoolBytes int64
	Syncs     uint64 // of records
	// Damage counts the places, found by Open, where something that had been
	// durable cannot be read. Torn counts those where a crash left a record half
	// written that no Sync had covered.
	Damage int
	Torn   int
}

// Open opens the segments in dir, which it makes if it has to, and repairs what
// a crash left behind. Each record goes to deliver, in the order in which they
// were written; an error of deliver ends it. It fails with vfs.ErrLocked if
// another process has the directory.
//
// What Open delivers is durable. Of sealed segments, which are all but the last,
// only the index is read.
func Open(fs vfs.FS, dir string, o Options, deliver func(Record) error) (_ *Set, err error) {
	if len(o.Store) == 0 || len(o.Store) > 8 {
		return nil, fmt.Errorf("open segments %s: store %q: want 1 to 8 octets", dir, o.Store)
	}
	s := &Set{
		fs: fs, dir: dir, limit: o.SegmentBytes, random: o.Random, log: o.Log,
		segments: make(map[Number]*segment),
	}
	copy(s.store[:], o.Store)
	if s.limit <= 0 {
		s.limit = SegmentBytesDefault
	}
	s.limit = min(s.limit, fileBytesMax/2)
	if s.random == nil {
		s.random = rand.Reader
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.pool = newPool(s, o.PoolFiles)
	if err := fs.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make directory of segments: %w", err)
	}
	if s.lock, err = fs.Lock(filepath.Join(dir, lockName)); err != nil {
		return nil, fmt.Errorf("open segments %s: %w", dir, err)
	}
	if err := s.load(deliver); err != nil {
		_ = s.lock.Close()
		return nil, fmt.Errorf("open segments %s: %w", dir, err)
	}
	return s, nil
}

// Close seals the last segment, so that the next Open need not search it, and
// gives the directory free. Nobody may be in Prewrite. Open readers stay usable.
func (s *Set) Close() error {
	s.mu.Lock()
	done := s.closed
	s.closed = true
	err := s.err
	s.mu.Unlock()
	if done {
		return nil
	}
	if err == nil {
		err = s.finish()
	}
	s.abandon()
	s.pool.close()
	if cerr := s.lock.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("close segments: %w", err)
	}
	return nil
}

// Err returns the error after which nothing is written any more, nil before.
func (s *Set) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ready returns why nothing can be written.
func (s *Set) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.closed {
		return ErrClosed
	}
	return s.err
}

// fail latches the first error and returns it.
func (s *Set) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return s.err
}

// Segments lists the segments, in order. The one that is written is the last,
// if Active says that there is one.
func (s *Set) Segments() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]Info, 0, len(s.segments))
	for n, g := range s.segments {
		infos = append(infos, Info{Number: n, Bytes: g.size, Sealed: g.seal.end > 0, Lost: g.lost})
	}
	slices.SortFunc(infos, func(a, b Info) int { return int(int64(a.Number) - int64(b.Number)) })
	return infos
}

// Active returns the segment that records go to, if there is one. It is for the
// one who writes.
func (s *Set) Active() (Number, bool) {
	if s.writer.active == nil {
		return 0, false
	}
	return s.writer.active.number, true
}

// Stats returns the counts of this moment.
func (s *Set) Stats() Stats {
	s.mu.Lock()
	st := Stats{Segments: len(s.segments), Syncs: s.counts.syncs, Damage: s.counts.damage, Torn: s.counts.torn}
	for _, g := range s.segments {
		st.Bytes += g.size
	}
	s.mu.Unlock()
	st.PoolFiles, st.PoolBytes = s.pool.stats()
	return st
}

// damaged counts one place that cannot be read, and says where.
func (s *Set) damaged(g *segment, what string, offset, bytes int64) {
	s.mu.Lock()
	s.counts.damage++
	g.worn = true
	s.mu.Unlock()
	s.log.Error("segment is damaged", "dir", s.dir, "segment", g.number, "what", what, "offset", offset, "bytes", bytes)
}

func (s *Set) segmentName(n Number) string {
	return filepath.Join(s.dir, numbered(uint64(n), segmentSuffix))
}

func numbered(n uint64, suffix string) string { return fmt.Sprintf("%08d%s", n, suffix) }

// parseNumbered reads a name that numbered wrote; other files are none of our
// business.
func parseNumbered(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 || numbered(n, suffix) != name {
		return 0, false
	}
	return n, true
}
