package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

var (
	// ErrNotFound: there is no entry of that index.
	ErrNotFound = errors.New("no such entry")
	// ErrGap: the entries to be appended do not follow the last one.
	ErrGap = errors.New("entries do not follow one another")
	// ErrDamaged: something that was durable cannot be read any more.
	ErrDamaged = segment.ErrDamaged
	// ErrClosed: the log has been closed.
	ErrClosed = segment.ErrClosed
)

const (
	kindEntry    segment.Kind = 1
	kindDeletion segment.Kind = 2
	// kindNext is an entry that was appended together with the one before it, in
	// one batch that is acknowledged as a whole. A crash may have torn that one and
	// left this one whole: then it counts for nothing. Of an entry of kind 1 the
	// one before it was durable.
	kindNext   segment.Kind = 3
	labelBytes              = 16
	storeName               = "raftlog"
)

// Options tune a log. With the zero value nothing is written ahead.
type Options struct {
	// SegmentBytes is the length at which a new file is begun; 0 is
	// SegmentBytesDefault.
	SegmentBytes int64
	// PoolFiles is how many files are kept that are written already.
	PoolFiles int
	// Random is where marks are drawn from; nil is crypto/rand.
	Random io.Reader
	// Log gets what is found damaged; nil discards.
	Log *slog.Logger
}

// SegmentBytesDefault is small beside the spool's: entries are, and a file is
// freed only when the last of its entries is deleted.
const SegmentBytesDefault = 16 << 20

// An Entry is one entry to be appended. Its octets must not change until Append
// returns.
type Entry struct {
	Index, Term uint64
	Pieces      [][]byte
}

// A Log is an open log. All methods are safe for concurrent use; what is read is
// what the last Append or Delete that has returned left, or that of one under way.
type Log struct {
	set *segment.Set
	// writing holds one token: who writes has it. It is no mutex since writing
	// is slow.
	writing chan struct{}

	// mu is never held over I/O.
	mu sync.Mutex
	// Invariant: places has one place for each index from first on, in the order
	// of the records; what it names is durable.
	first  uint64 // meaningless while places is empty
	places []segment.Place
	// attested is the last entry before the last batch that was found by Open.
	attested uint64
	readers  map[segment.Number]*segment.Reader
}

// Open opens, or makes, the log in dir. ErrDamaged says that something in it was
// durable once and is lost.
func Open(fs vfs.FS, dir string, o Options) (*Log, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = SegmentBytesDefault
	}
	l := &Log{writing: make(chan struct{}, 1), readers: make(map[segment.Number]*segment.Reader)}
	set, err := segment.Open(fs, dir, segment.Options{
		Store: storeName, SegmentBytes: o.SegmentBytes, PoolFiles: o.PoolFiles, Random: o.Random, Log: o.Log,
	}, l.replay)
	if err != nil {
		return nil, err
	}
	l.set = set
	if st := set.Stats(); st.Damage > 0 {
		return nil, errors.Join(fmt.Errorf("log in %s: %d places: %w", dir, st.Damage, ErrDamaged), set.Close())
	}
	return l, nil
}

// replay takes in one record that was found.
func (l *Log) replay(r segment.Record) error {
	if len(r.Label) != labelBytes || r.Damaged {
		return fmt.Errorf("record at %d of segment %d: %w", r.Place.Offset(), r.Place.Segment, ErrDamaged)
	}
	a, b := binary.BigEndian.Uint64(r.Label), binary.BigEndian.Uint64(r.Label[8:])
	switch r.Kind {
	case kindDeletion:
		l.cut(a, b)
		return nil
	case kindNext, kindEntry:
		// What lies in front of a segment's first record was synced before there
		// was one.
		partial := r.Kind == kindNext && r.Place.Offset() != segment.FirstOffset
		if partial && (len(l.places) == 0 || a != l.first+uint64(len(l.places))) {
			return nil
		}
		if a == 0 || len(l.places) > 0 && a != l.first+uint64(len(l.places)) {
			return fmt.Errorf("entry %d follows entry %d: %w", a, l.first+uint64(len(l.places))-1, ErrDamaged)
		}
		if r.Kind == kindEntry {
			l.attested = a - 1
		}
		l.add(a, r.Place)
		return nil
	}
	return fmt.Errorf("record of kind %d: written by a later version", r.Kind)
}

func (l *Log) add(index uint64, at segment.Place) {
	if len(l.places) == 0 {
		l.first = index
	}
	l.places = append(l.places, at)
}

// cut takes the entries from lowest to highest out of places.
func (l *Log) cut(lowest, highest uint64) {
	if len(l.places) == 0 || lowest > highest {
		return
	}
	last := l.first + uint64(len(l.places)) - 1
	switch {
	case lowest <= l.first && highest >= last:
		l.places = nil
	case lowest <= l.first && highest >= l.first:
		// A copy, so that what was cut is not kept in memory.
		l.places = slices.Clone(l.places[highest-l.first+1:])
		l.first = highest + 1
	case lowest > l.first && lowest <= last && highest >= last:
		l.places = l.places[:lowest-l.first]
	}
}

// Bounds returns the first and the last index, zero where there is no entry.
func (l *Log) Bounds() (first, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.places) == 0 {
		return 0, 0
	}
	return l.first, l.first + uint64(len(l.places)) - 1
}

// Attested returns the last entry before the last batch, as Open found them: when
// that batch was written, everything up to here was durable. A log that holds one
// batch, or none, attests nothing.
func (l *Log) Attested() uint64 { return l.attested }

// Append appends entries behind the last one, with one sync. Into an empty log
// it may begin at any index.
func (l *Log) Append(entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	l.writing <- struct{}{}
	defer func() { <-l.writing }()
	if _, last := l.Bounds(); last != 0 && entries[0].Index != last+1 {
		return fmt.Errorf("append entry %d behind entry %d: %w", entries[0].Index, last, ErrGap)
	}
	places := make([]segment.Place, len(entries))
	for i, e := range entries {
		if e.Index == 0 || e.Index != entries[0].Index+uint64(i) {
			return fmt.Errorf("append entry %d in place %d from %d: %w", e.Index, i, entries[0].Index, ErrGap)
		}
	}
	for i, e := range entries {
		var err error
		kind := kindEntry
		if i > 0 {
			kind = kindNext
		}
		if places[i], err = l.set.Append(kind, label(e.Index, e.Term), segment.NewPayload(e.Pieces...)); err != nil {
			return fmt.Errorf("append entry %d: %w", e.Index, err)
		}
	}
	if err := l.set.Sync(); err != nil {
		return fmt.Errorf("append entries from %d: %w", entries[0].Index, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range entries {
		l.add(e.Index, places[i])
	}
	return nil
}

func label(a, b uint64) []byte {
	p := make([]byte, 0, labelBytes)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(p, a), b)
}

// errMiddle: a log has no holes.
var errMiddle = errors.New("entries on both sides would stay")

// Delete deletes the entries from lowest to highest, both included. They must be
// the first ones, the last ones, or all; indexes without an entry count for
// nothing.
func (l *Log) Delete(lowest, highest uint64) error {
	l.writing <- struct{}{}
	defer func() { <-l.writing }()
	first, last := l.Bounds()
	if first == 0 || lowest > highest || highest < first || lowest > last {
		return nil
	}
	if lowest > first && highest < last {
		return fmt.Errorf("delete entries %d to %d of %d to %d: %w", lowest, highest, first, last, errMiddle)
	}
	_, err := l.set.Append(kindDeletion, label(lowest, highest), segment.NewPayload())
	if err == nil {
		err = l.set.Sync()
	}
	if err != nil {
		return fmt.Errorf("delete entries %d to %d: %w", lowest, highest, err)
	}
	l.mu.Lock()
	l.cut(lowest, highest)
	unused, readers := l.unusedLocked()
	l.mu.Unlock()
	for _, r := range readers {
		_ = r.Close() // It was only read.
	}
	// One by one, the oldest first: if a crash brought back one and not the one
	// behind it, entries would be missing in between.
	for _, n := range unused {
		if err := l.set.Free(n); err != nil {
			return fmt.Errorf("free what held entries %d to %d: %w", lowest, highest, err)
		}
	}
	return nil
}

// unusedLocked returns the segments before that of the first entry, with the
// readers on them. A deletion in one of them is about entries in it or in one
// before it, and all of those go.
func (l *Log) unusedLocked() (numbers []segment.Number, readers []*segment.Reader) {
	keep, ok := l.set.Active()
	if len(l.places) > 0 {
		keep, ok = l.places[0].Segment, true
	}
	if !ok {
		return nil, nil
	}
	for _, g := range l.set.Segments() {
		if g.Number >= keep {
			continue
		}
		numbers = append(numbers, g.Number)
		if r := l.readers[g.Number]; r != nil {
			readers = append(readers, r)
			delete(l.readers, g.Number)
		}
	}
	return numbers, readers
}

// Read returns the term and the octets of an entry, in buf if it is long enough.
func (l *Log) Read(index uint64, buf []byte) (term uint64, octets []byte, err error) {
	for {
		at, r, err := l.reader(index)
		if err != nil {
			return 0, nil, err
		}
		rec, octets, err := r.Read(at, buf)
		if err != nil && l.moved(index, at) {
			continue // deleted, and its file gone, since we looked
		}
		if err != nil {
			return 0, nil, fmt.Errorf("read entry %d: %w", index, err)
		}
		if rec.Kind != kindEntry && rec.Kind != kindNext || len(rec.Label) != labelBytes || binary.BigEndian.Uint64(rec.Label) != index {
			return 0, nil, fmt.Errorf("read entry %d: another record: %w", index, ErrDamaged)
		}
		return binary.BigEndian.Uint64(rec.Label[8:]), octets, nil
	}
}

// ReadRun reads entries from index on with one look at the disk, as many as lie
// whole in buf and in one segment, limit at the most. What yield gets is a part of
// buf. It yields none where the first one is not there, damaged, or longer than
// buf: Read says more.
func (l *Log) ReadRun(index uint64, limit int, buf []byte, yield func(index, term uint64, octets []byte)) {
	_, r, err := l.reader(index)
	if err != nil {
		return
	}
	l.mu.Lock()
	var places []segment.Place
	if index >= l.first && index-l.first < uint64(len(l.places)) {
		places = l.places[index-l.first:]
		places = slices.Clone(places[:min(limit, len(places))])
	}
	l.mu.Unlock()
	for _, run := range r.ReadRun(places, buf) {
		if run.Kind != kindEntry && run.Kind != kindNext || len(run.Label) != labelBytes || binary.BigEndian.Uint64(run.Label) != index {
			return
		}
		yield(index, binary.BigEndian.Uint64(run.Label[8:]), run.Payload)
		index++
	}
}

// reader returns where an entry lies and a reader on that segment.
func (l *Log) reader(index uint64) (segment.Place, *segment.Reader, error) {
	for {
		l.mu.Lock()
		if index < l.first || index-l.first >= uint64(len(l.places)) {
			l.mu.Unlock()
			return segment.Place{}, nil, ErrNotFound
		}
		at := l.places[index-l.first]
		r := l.readers[at.Segment]
		l.mu.Unlock()
		if r != nil {
			return at, r, nil
		}
		r, err := l.set.Reader(at.Segment)
		if err != nil {
			if l.moved(index, at) {
				continue
			}
			return segment.Place{}, nil, fmt.Errorf("read entry %d: %w", index, err)
		}
		l.mu.Lock()
		if other := l.readers[at.Segment]; other != nil {
			l.mu.Unlock()
			_ = r.Close()
			continue
		}
		l.readers[at.Segment] = r
		l.mu.Unlock()
		return at, r, nil
	}
}

// moved reports whether an entry does not lie any more where it lay.
func (l *Log) moved(index uint64, at segment.Place) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return index < l.first || index-l.first >= uint64(len(l.places)) || l.places[index-l.first] != at
}

// Prewrite does one step towards a full pool, and reports whether there is more
// to do. It may run beside everything else, but not beside itself.
func (l *Log) Prewrite() (more bool) { return l.set.Prewrite() }

// Stats is what lies on the disk.
func (l *Log) Stats() segment.Stats { return l.set.Stats() }

// Close ends the log.
func (l *Log) Close() error {
	l.writing <- struct{}{}
	defer func() { <-l.writing }()
	l.mu.Lock()
	readers := l.readers
	l.readers = make(map[segment.Number]*segment.Reader)
	l.mu.Unlock()
	for _, r := range readers {
		_ = r.Close() // It was only read.
	}
	return l.set.Close()
}
