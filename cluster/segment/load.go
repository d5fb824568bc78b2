package segment

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A Record is one that was found. Its label is memory of the set, good until
// deliver returns or the buffer of Read is used again.
type Record struct {
	Place  Place
	Kind   Kind
	Label  []byte
	Length int64 // of the payload
	// Damaged: the payload, which Open had a reason to read, was durable once and
	// is not any more what was written.
	Damaged bool

	file vfs.File // open while Open delivers
	mark mark
}

// Payload reads the payload and checks it. It is for the function that Open
// delivers to. The error is ErrDamaged if the payload is not what was written.
func (r Record) Payload() ([]byte, error) {
	_, payload, err := readRecord(r.file, r.mark, r.Place.Offset(), nil)
	if err != nil {
		return nil, fmt.Errorf("read record at %d of segment %d: %w", r.Place.Offset(), r.Place.Segment, err)
	}
	return payload, nil
}

// load reads the directory. Only the last segment can be torn, since each one
// is sealed before the next has its name; of the others the index is read, of
// the last one, unless it is sealed, every octet.
func (s *Set) load(deliver func(Record) error) error {
	// Names that a killed process made, and that we see, need not be durable.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	var numbers []Number
	var pool []uint64
	for _, name := range names {
		if n, ok := parseNumbered(name, segmentSuffix); ok {
			numbers = append(numbers, Number(n))
		} else if n, ok := parseNumbered(name, poolSuffix); ok {
			pool = append(pool, n)
		}
	}
	s.pool.adopt(pool)
	slices.Sort(numbers)
	empty := false
	for i, n := range numbers {
		s.writer.last = n
		if empty, err = s.loadSegment(n, i == len(numbers)-1, deliver); err != nil {
			return fmt.Errorf("segment %d: %w", n, err)
		}
	}
	if empty { // the power failed before the first record was there
		return s.free([]Number{s.writer.last})
	}
	return nil
}

// loadSegment reads one segment file, and reports whether it has no records.
func (s *Set) loadSegment(n Number, last bool, deliver func(Record) error) (empty bool, err error) {
	open := s.fs.Open
	if last {
		open = s.fs.OpenWrite
	}
	f, err := open(s.segmentName(n))
	if err != nil {
		return false, err
	}
	g := &segment{number: n}
	s.segments[n] = g
	var records []found
	if g.size, err = f.Size(); err == nil {
		records, err = s.recover(f, g, last)
	}
	for _, r := range records {
		if err != nil {
			break
		}
		err = deliver(Record{
			Place: PlaceAt(n, r.offset), Kind: r.kind, Label: r.label, Length: r.length, Damaged: r.damaged,
			file: f, mark: g.mark,
		})
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return last && len(records) == 0 && !g.lost && !g.worn, err
}

// A found record is one with a good header.
type found struct {
	record
	damaged bool // the payload differs from its checksum
}

// recover returns the records of a segment file. When it is done, the last
// segment is sealed like the others.
func (s *Set) recover(f vfs.File, g *segment, last bool) ([]found, error) {
	h, sealed, err := s.readHead(f, g, last)
	if err != nil || g.lost {
		return nil, err
	}
	g.mark, g.seal = h.mark, sealed
	if sealed.end > 0 {
		records, err := readIndex(f, g)
		if err != nil {
			return nil, err
		}
		if records == nil {
			s.damaged(g, "index", sealed.index, sealed.end-sealed.index)
			c, err := scanSealed(f, g)
			if err != nil {
				return nil, err
			}
			s.report(g, c)
			records = c.records
		} else if last {
			// A kill behind a failed sync of the seal leaves one that reads well and is
			// not on the disk.
			err = writeSeal(f, h, sealed)
		}
		return records, err
	}
	if !last {
		s.damaged(g, "seal", sealOffset, sealBytes)
		g.seal = seal{index: g.size, end: g.size} // as far as anybody knows
	}
	c := &scan{window: window{file: f, size: g.size}, mark: g.mark, sealed: !last}
	if err := c.run(); err != nil {
		return nil, err
	}
	s.report(g, c)
	if last {
		if g.seal, err = c.mend(h); err != nil {
			return nil, fmt.Errorf("mend the tail: %w", err)
		}
		g.size = g.seal.end
	}
	return c.records, nil
}

// scanSealed finds the records of a segment whose index cannot be read.
func scanSealed(f vfs.File, g *segment) (*scan, error) {
	c := &scan{window: window{file: f, size: g.seal.index}, mark: g.mark, sealed: true}
	return c, c.run()
}

// report counts and names what a scan could not read.
func (s *Set) report(g *segment, c *scan) {
	for _, d := range c.damage {
		s.damaged(g, "record", d.from, d.to-d.from)
	}
	s.counts.torn += len(c.torn)
	for _, d := range c.torn {
		s.log.Info("cut what a crash left half written", "dir", s.dir, "segment", g.number, "offset", d.from, "bytes", d.to-d.from)
	}
}

// readHead reads both pages of the head, of which one is enough. If neither can
// be read, the segment is lost: it is counted and left alone. The seal's end is 0
// if there is none.
func (s *Set) readHead(f vfs.File, g *segment, last bool) (h header, sealed seal, err error) {
	headers, seals, page := 0, 0, make([]byte, pageBytes)
	for i := range int64(headPages) {
		n, err := f.ReadAt(page, i*pageBytes)
		if err != nil && !errors.Is(err, io.EOF) && !vfs.Unreadable(err) {
			return header{}, seal{}, fmt.Errorf("read head: %w", err)
		}
		if err != nil && vfs.Unreadable(err) {
			n = 0
		}
		one, ok, err := decodeHeader(page[:n], g.number, s.store)
		if err != nil {
			return header{}, seal{}, err
		}
		if !ok {
			continue
		}
		headers++
		h = one
		if n >= sealOffset {
			if mine, ok := decodeSeal(page[sealOffset:n], h); ok {
				sealed = mine
				seals++
			}
		}
	}
	if headers < headPages {
		s.damaged(g, "head", 0, headBytes)
	}
	if seals > 0 && seals < headers && !last {
		s.damaged(g, "seal", sealOffset, sealBytes)
	}
	g.lost = headers == 0
	if sealed.end > g.size {
		s.damaged(g, "end", g.size, sealed.end-g.size)
		sealed = seal{}
	}
	return h, sealed, nil
}

// readIndex returns the records that the index of a sealed segment names, nil if
// the index cannot be read.
func readIndex(f vfs.File, g *segment) ([]found, error) {
	sealed := g.seal
	b := make([]byte, sealed.end-sealed.index)
	if n, err := f.ReadAt(b, sealed.index); n < len(b) {
		if !vfs.Unreadable(err) && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read index: %w", err)
		}
		return nil, nil
	}
	r, ok := decodeRecord(b, g.mark, sealed.index)
	if !ok || r.kind != kindIndex || r.end() != sealed.end {
		return nil, nil
	}
	payload := b[recordHeaderBytes : recordHeaderBytes+r.length]
	if checksum(payload) != r.sum {
		return nil, nil
	}
	records, ok := decodeIndex(payload, sealed.index)
	if !ok {
		return nil, nil
	}
	all := make([]found, len(records))
	for i, r := range records {
		all[i] = found{record: r}
	}
	return all, nil
}
