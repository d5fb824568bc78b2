package segment

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const (
	// Headers, labels, padding and short pieces are gathered in a buffer: copying
	// them costs less than naming each to the kernel. It begins at arenaBytesMin,
	// since many sets never need more, and grows up to arenaBytesMax. Pieces longer
	// than copyBytesMax are written from where they lie.
	arenaBytesMin = 64 << 10
	arenaBytesMax = 1 << 20
	copyBytesMax  = 8 << 10
	// piecesMax and writeBytesMax bound one write.
	piecesMax     = 512
	writeBytesMax = 16 << 20
)

// What was written last stays in the page cache, keptBytes of it: a body is often
// read at once, by its delivery. Of a segment that grows, what is older is
// forgotten, in steps of forgetBytes, which hold whole folios of the page cache.
// A growing segment is a sign of a queue that grows, and nobody reads that soon.
// Without it each page that is written takes a page that was free for long, which
// the host of a virtual machine may first have to find: several times what the
// write itself costs.
const (
	keptBytes   = 4 << 20
	forgetBytes = 2 << 20
)

// When a file grows, each sync has the file system's journal written, three blocks
// at the least. A batch that is no longer than those is cheaper written twice: zeros
// are written behind it, with its own sync, and the next batches go over them and
// need no journal. There are never more zeros at a time than octets in the small
// batches before them, and at most aheadBytesMax: if other batches follow, they
// were for nothing.
const (
	aheadBatchMax = 3 * pageBytes
	aheadBytesMax = 256 << 10
)

// allocateBytes is what a growing file has set aside for it at a time: a batch that
// has to find room writes the file system's books about free room, too.
const allocateBytes = 4 << 20

// A writer is what is written to.
type writer struct {
	active *segment // nil until something is written
	file   vfs.File // of active
	// end is where the next record goes, flushed how far the file is written, and
	// synced how far it is durable.
	//
	// Invariant: synced <= flushed <= end.
	end, flushed, synced int64
	index                []byte // of the records up to end
	// grows: the file was not written ahead. forgotten is how far it has been
	// forgotten.
	//
	// Invariant: forgotten is a multiple of forgetBytes.
	grows     bool
	forgotten int64
	// ahead: everything in front of it was written and synced before it was needed,
	// whatever it holds. sector is how finely it can be written past the page cache,
	// at most a page; 0 if it cannot.
	ahead, sector int64
	// large: large payloads go past the page cache.
	large bool
	// allocated is how far room was set aside for a file that grows; if large, the file
	// is that long.
	allocated int64
	// small is how many octets the last batches had in a row that were small.
	small int64

	// arena holds the small pieces of what is between flushed and end, and in front
	// of them tail: what the file has from the last page up to flushed, if it can be
	// written past the page cache. open is where in it the piece begins that may still
	// grow. So all pieces, one behind the other, are the file from the page on in
	// which flushed lies.
	arena  []byte
	open   int
	pieces [][]byte
	tail   []byte
	// past: the pieces begin and end with pages, and lie in pages of memory, as far as
	// the file's end allows.
	//
	// Invariant: if past, or if there is no piece yet, an octet lies as far behind the
	// beginning of a page in the arena as it does in the file.
	past bool

	last Number // the greatest number ever seen
}

// Append puts a record at the end of the active segment, or of a new one if it
// does not fit: then everything before it is synced. It is durable after the
// next Sync, and until then payload must not change.
func (s *Set) Append(kind Kind, label []byte, payload Payload) (Place, error) {
	if err := s.ready(); err != nil {
		return Place{}, err
	}
	if len(label) > LabelBytesMax || payload.length > PayloadBytesMax || kind == 0 || kind > KindMax {
		return Place{}, fmt.Errorf("append record of kind %d, label %d, payload %d: %w", kind, len(label), payload.length, ErrTooLarge)
	}
	r := record{kind: kind, label: label, sum: payload.sum, length: payload.length}
	if err := s.makeRoom(r); err != nil {
		return Place{}, s.fail(err)
	}
	w := &s.writer
	if err := s.beginLarge(r); err != nil {
		return Place{}, s.fail(err)
	}
	r.offset = w.end
	if err := s.appendRecord(r, payload); err != nil {
		return Place{}, s.fail(err)
	}
	w.index = appendIndexEntry(w.index, r)
	return PlaceAt(w.active.number, r.offset), nil
}

// makeRoom begins a new segment if r does not fit in the active one.
func (s *Set) makeRoom(r record) error {
	w := &s.writer
	if w.active != nil {
		index := len(w.index) + indexEntryBytes + len(r.label)
		full := w.end+w.gap(r)+RecordBytes(len(r.label), r.length)+RecordBytes(0, int64(index)) > s.limit
		if w.end == headBytes || !full && index <= indexBytesMax {
			return nil
		}
	}
	return s.roll()
}

// appendRecord puts r, whose offset is the end, behind what is there.
func (s *Set) appendRecord(r record, payload Payload) error {
	w := &s.writer
	r.attested = w.synced
	need := recordHeaderBytes + len(r.label)
	if cap(w.arena)-len(w.arena) < need {
		if err := s.moreArena(); err != nil {
			return err
		}
	}
	w.arena = r.appendTo(w.arena, w.active.mark)
	w.end += int64(need)
	for _, p := range payload.pieces {
		if err := s.appendBytes(p); err != nil {
			return err
		}
	}
	return s.appendBytes(zeros[:RecordBytes(len(r.label), r.length)-int64(need)-r.length])
}

// zeros is as long as the padding of a record and a gap may be.
var zeros [pageBytes + recordHeaderBytes]byte

// appendBytes puts p behind what is there.
func (s *Set) appendBytes(p []byte) error {
	w := &s.writer
	if w.past {
		return s.appendPast(p)
	}
	small := len(p) <= copyBytesMax
	if small && len(p) > cap(w.arena)-len(w.arena) {
		if err := s.moreArena(); err != nil {
			return err
		}
	}
	if len(w.pieces)+2 >= piecesMax || w.end-w.flushed >= writeBytesMax {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if small {
		w.arena = append(w.arena, p...)
	} else {
		w.closePiece()
		w.pieces = append(w.pieces, p)
	}
	w.end += int64(len(p))
	return nil
}

// closePiece makes a piece of what was added to the arena.
func (w *writer) closePiece() {
	if len(w.arena) > w.open {
		w.pieces = append(w.pieces, w.arena[w.open:])
		w.open = len(w.arena)
	}
}

// moreArena makes room in the arena: another one, twice as long, up to the bound;
// then what is in it is written. The pieces in the old one stay where they are.
func (s *Set) moreArena() error {
	w := &s.writer
	if cap(w.arena) >= arenaBytesMax {
		return s.flush()
	}
	longer := vfs.Aligned(min(2*cap(w.arena), arenaBytesMax))[:0]
	if len(w.pieces) == 0 {
		w.arena = append(longer, w.arena...)
		return nil
	}
	w.closePiece()
	w.arena, w.open = longer, 0
	return nil
}

// flush writes what was appended.
func (s *Set) flush() error {
	w := &s.writer
	if w.end == w.flushed {
		return nil
	}
	w.closePiece()
	w.allocate(s.limit)
	from := w.flushed - int64(len(w.tail))
	w.keepTail()
	var err error
	if unit := w.unit(); unit > 0 {
		_, err = w.file.WriteSectors(w.sectors(unit), w.flushed/unit*unit)
	} else {
		_, err = w.file.WritevAt(w.pieces, from)
	}
	clear(w.pieces)
	w.pieces = w.pieces[:0]
	w.arena = append(w.arena[:0], w.tail...)
	w.open = 0
	if err != nil {
		return fmt.Errorf("write segment %d: %w", w.active.number, err)
	}
	w.flushed = w.end
	return nil
}

// allocate sets room aside for what was appended and more, up to limit, unless it
// is little, for which writeAhead is better.
func (w *writer) allocate(limit int64) {
	if !w.grows || w.end <= w.allocated || w.end-w.synced <= aheadBatchMax {
		return
	}
	upTo := pageUp(max(w.end, min(w.end+allocateBytes, limit)))
	if err := w.file.Allocate(w.flushed, upTo-w.flushed); err != nil {
		w.large = false // it would have to make the file longer
	}
	w.allocated = upTo
}

// pageUp returns the first multiple of a page from n on.
func pageUp(n int64) int64 { return (n + pageBytes - 1) / pageBytes * pageBytes }

// Sync makes all that was appended durable.
func (s *Set) Sync() error {
	if err := s.ready(); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return s.fail(err)
	}
	return nil
}

func (s *Set) sync() error {
	w := &s.writer
	if w.active == nil {
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	if w.synced == w.end {
		return nil
	}
	ahead := w.writeAhead(s.limit)
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("sync segment %d: %w", w.active.number, err)
	}
	w.synced, w.ahead, w.past = w.end, ahead, false
	w.forget(keptBytes)
	s.mu.Lock()
	w.active.size = max(w.active.size, w.end, w.ahead)
	s.counts.syncs++
	s.mu.Unlock()
	return nil
}

// writeAhead writes zeros behind what was flushed, where that is cheaper than what
// the file system would write instead. It returns how far the file is written ahead
// when it is synced, at most up to limit. To fail is no harm: what lies there means
// nothing.
func (w *writer) writeAhead(limit int64) int64 {
	batch := w.end - w.synced
	if !w.grows || batch > aheadBatchMax {
		w.small = 0
		return w.ahead
	}
	w.small += batch
	if w.end <= w.ahead {
		return w.ahead
	}
	upTo := pageUp(w.end + min(w.small, aheadBytesMax))
	if upTo > limit {
		return w.ahead
	}
	if err := writeAt(w.file, make([]byte, upTo-w.end), w.end); err != nil {
		return w.ahead
	}
	return upTo
}

// forget has the page cache forget what is synced, all but the last octets.
func (w *writer) forget(kept int64) {
	if upTo := (w.synced - kept) / forgetBytes * forgetBytes; w.grows && upTo > w.forgotten {
		w.file.Forget(w.forgotten, upTo-w.forgotten)
		w.forgotten = upTo
	}
}
