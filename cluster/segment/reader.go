package segment

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A Reader reads one segment, the active one too as far as it was flushed. It is
// safe for concurrent use. While it is open the file is not used again: what it
// reads stays as it is, even when the segment is freed.
type Reader struct {
	set     *Set
	segment *segment
	file    vfs.File
	close   sync.Once
}

// Reader opens a segment for reading. The error is ErrGone if the segment has
// been freed, and one that matches io/fs.ErrNotExist if somebody took the file
// away.
func (s *Set) Reader(n Number) (*Reader, error) {
	s.mu.Lock()
	g := s.segments[n]
	if g == nil || g.freed {
		s.mu.Unlock()
		return nil, fmt.Errorf("read segment %d: %w", n, ErrGone)
	}
	g.readers++
	s.mu.Unlock()
	f, err := s.fs.Open(s.segmentName(n))
	if err != nil {
		s.release(g)
		return nil, fmt.Errorf("read segment %d: %w", n, err)
	}
	return &Reader{set: s, segment: g, file: f}, nil
}

func (s *Set) release(g *segment) {
	s.mu.Lock()
	g.readers--
	s.mu.Unlock()
}

// Close ends the reader. Closing it again does nothing.
func (r *Reader) Close() (err error) {
	r.close.Do(func() {
		err = r.file.Close()
		r.set.release(r.segment)
	})
	return err
}

// ReadAt reads octets of the file as they are: nothing is checked.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.file.ReadAt(p, off) }

// readAheadBytes is what Read reads at once, in the hope that it is the whole
// record.
const readAheadBytes = 4 << 10

// Read reads the record at offset of this segment and checks it. Its label and
// the payload lie in buf, if that is long enough, and in new memory otherwise.
// The error is ErrDamaged if what is there is not a record that was written
// there.
func (r *Reader) Read(at Place, buf []byte) (Record, []byte, error) {
	if at.Segment != r.segment.number {
		return Record{}, nil, fmt.Errorf("read record in segment %d: it lies in segment %d", r.segment.number, at.Segment)
	}
	rec, payload, err := readRecord(r.file, r.segment.mark, at.Offset(), buf)
	if err != nil {
		return Record{}, nil, fmt.Errorf("read record at %d of segment %d: %w", at.Offset(), at.Segment, err)
	}
	return Record{Place: at, Kind: rec.kind, Label: rec.label, Length: rec.length}, payload, nil
}

// A Run is a record of ReadRun and its payload.
type Run struct {
	Record
	Payload []byte
}

// ReadRun reads the records at these places of this segment, which follow one
// another, with one look at the file: as many as lie whole in buf, of which
// everything it returns is a part. It stops in front of a record that is not
// whole, or damaged: Read says what is wrong with it.
func (r *Reader) ReadRun(places []Place, buf []byte) []Run {
	if len(places) == 0 {
		return nil
	}
	from := places[0].Offset()
	n, err := r.file.ReadAt(buf, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	runs := make([]Run, 0, len(places))
	for _, at := range places {
		off := at.Offset() - from
		if at.Segment != r.segment.number || off < 0 || off >= int64(n) {
			break
		}
		rec, ok := decodeRecord(buf[off:n], r.segment.mark, at.Offset())
		if !ok {
			break
		}
		begin := off + recordHeaderBytes + int64(len(rec.label))
		end := begin + rec.length
		if end > int64(n) || checksum(buf[begin:end]) != rec.sum {
			break
		}
		runs = append(runs, Run{
			Record:  Record{Place: at, Kind: rec.kind, Label: rec.label, Length: rec.length},
			Payload: buf[begin:end:end],
		})
	}
	return runs
}

// Records delivers the records of a sealed segment in order, as Open does, and
// reads none of them. An error of deliver ends it.
func (r *Reader) Records(deliver func(Record) error) error {
	g := r.segment
	r.set.mu.Lock()
	sealed := g.seal.end > 0
	r.set.mu.Unlock()
	if !sealed || g.lost {
		return fmt.Errorf("list records of segment %d: it is written to, or lost", g.number)
	}
	records, err := readIndex(r.file, g)
	if err == nil && records == nil {
		var c *scan
		c, err = scanSealed(r.file, g)
		records = c.records
	}
	for _, one := range records {
		if err != nil {
			break
		}
		err = deliver(Record{Place: PlaceAt(g.number, one.offset), Kind: one.kind, Label: one.label, Length: one.length, file: r.file, mark: g.mark})
	}
	if err != nil {
		return fmt.Errorf("list records of segment %d: %w", g.number, err)
	}
	return nil
}

func readRecord(f vfs.File, m mark, off int64, buf []byte) (record, []byte, error) {
	buf = buf[:cap(buf)]
	if len(buf) < readAheadBytes {
		buf = make([]byte, readAheadBytes)
	}
	n, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return record{}, nil, unreadable(err)
	}
	rec, ok := decodeRecord(buf[:n], m, off)
	if !ok {
		return record{}, nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	from := recordHeaderBytes + int64(len(rec.label))
	if want := from + rec.length; want > int64(n) {
		whole := make([]byte, want)
		n := copy(whole, buf[:n])
		if m, err := f.ReadAt(whole[n:], off+int64(n)); m < len(whole)-n {
			return record{}, nil, unreadable(err)
		}
		rec.label = whole[recordHeaderBytes:from]
		buf = whole
	}
	payload := buf[from : from+rec.length]
	if checksum(payload) != rec.sum {
		return record{}, nil, fmt.Errorf("payload: %w", ErrDamaged)
	}
	return rec, payload, nil
}

// unreadable makes ErrDamaged of an error that says so.
func unreadable(err error) error {
	if vfs.Unreadable(err) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
