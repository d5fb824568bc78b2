package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// segmentSuffix ends the names of segment files: 00000001.seg.
const segmentSuffix = ".seg"

func segmentFile(n segmentNumber) string { return fmt.Sprintf("%08d%s", n, segmentSuffix) }

// parseSegmentFile reads a name that segmentFile wrote; other files are none of
// our business.
func parseSegmentFile(name string) (segmentNumber, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 || segmentFile(segmentNumber(n)) != name {
		return 0, false
	}
	return segmentNumber(n), true
}

// load reads the directory into the index. Only the last segment can be torn,
// since each one is wholly synced before the next exists; of the others the
// record headers are read, of the last one every octet.
func (s *Spool) load() error {
	// Names that a killed process made, and that we see, need not be durable.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	var numbers []segmentNumber
	for _, name := range names {
		if n, ok := parseSegmentFile(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		s.writer.last = n
		if err := s.loadSegment(n, i == len(numbers)-1); err != nil {
			return fmt.Errorf("segment %d: %w", n, err)
		}
	}
	return s.free()
}

// loadSegment reads one segment file.
func (s *Spool) loadSegment(n segmentNumber, last bool) error {
	f, err := s.fs.OpenWrite(s.segmentName(n))
	if err != nil {
		return err
	}
	err = s.loadFile(f, n, last)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *Spool) loadFile(f vfs.File, n segmentNumber, last bool) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	g := &segment{number: n, end: size}
	s.segments[n] = g
	head := make([]byte, min(size, segmentHeadBytes))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read header: %w", err)
	}
	h, err := decodeSegmentHeader(head, n)
	switch {
	case err == nil:
	case !errors.Is(err, errSegmentHeader):
		return err
	case size <= segmentHeadBytes && last:
		return nil // a crash while it was begun: nothing is in it, and free removes it
	default:
		g.damaged = true
		s.counts.damage++
		s.log.Error("segment cannot be read: its header is damaged", "segment", n, "bytes", size)
		return nil
	}
	g.mark = h.mark
	c := &scan{file: f, mark: h.mark, size: size, payloads: last}
	if err := c.run(); err != nil {
		return err
	}
	if last {
		if g.end, err = c.mend(); err != nil {
			return fmt.Errorf("mend the tail: %w", err)
		}
	}
	s.enter(g, c)
	return nil
}

// enter puts what a scan found into the index.
func (s *Spool) enter(g *segment, c *scan) {
	s.counts.damage += len(c.damage)
	s.counts.torn += len(c.torn)
	for _, d := range c.damage {
		s.log.Error("spool is damaged", "segment", g.number, "offset", d.from, "bytes", d.to-d.from)
	}
	for _, d := range c.torn {
		s.log.Info("cut what a crash left half written", "segment", g.number, "offset", d.from, "bytes", d.to-d.from)
	}
	for _, r := range c.records {
		switch r.kind {
		case kindBody:
			s.enterBody(g, r)
		case kindDeletions:
			for _, d := range r.deletions {
				s.enterDeletion(g, d)
			}
		}
	}
}

func (s *Spool) enterBody(g *segment, r scanned) {
	at := placeOf(g.number, r.offset)
	g.live++
	if old, ok := s.index[r.id]; ok {
		// A later record stands in for an earlier one, which was damaged. Its
		// tombstone did not get to the disk.
		s.forget(r.id, old)
		s.writer.owed = append(s.writer.owed, deletion{id: r.id, at: old.at})
	}
	s.index[r.id] = entry{digest: r.digest, size: uint32(r.length), at: at}
	if r.damaged {
		s.bad[r.id] = struct{}{}
		return
	}
	s.counts.bodyBytes += mail.ByteSize(r.length)
}

func (s *Spool) enterDeletion(g *segment, d deletion) {
	target := s.segments[d.at.segment]
	if target == nil {
		return // gone for good
	}
	if target != g {
		g.deletions = append(g.deletions, d)
	}
	if e, ok := s.index[d.id]; ok && e.at == d.at {
		s.forget(d.id, e)
		target.live--
		return
	}
	if i := slices.Index(s.writer.owed, d); i >= 0 {
		s.writer.owed = slices.Delete(s.writer.owed, i, i+1)
		target.live--
	}
}

// forget takes an entry out of the index.
func (s *Spool) forget(id mail.QueueID, e entry) {
	if _, bad := s.bad[id]; !bad {
		s.counts.bodyBytes -= mail.ByteSize(e.size)
	}
	delete(s.index, id)
	delete(s.bad, id)
}

// A region is a stretch of a file.
type region struct{ from, to int64 }

// A scan reads one segment file from the first record to the end.
type scan struct {
	file     vfs.File
	mark     mark
	size     int64
	payloads bool // check the bodies too

	records []scanned
	damage  []region // was durable and cannot be read
	torn    []region // was perhaps never durable, and cannot be read
	// attested is the greatest of the records' attested fields: everything
	// before it was synced once.
	attested int64
}

// A scanned record is one with a good header.
type scanned struct {
	record
	deletions []deletion
	damaged   bool // the payload differs from its checksum
}

// run reads the file. Where a header is damaged it goes on at the next good one.
func (c *scan) run() error {
	c.attested = segmentHeadBytes
	var unreadable []region
	for off := int64(segmentHeadBytes); off < c.size; {
		r, ok, err := c.header(off)
		if err != nil {
			return err
		}
		if !ok {
			next, err := c.next(off + recordAlign)
			if err != nil {
				return err
			}
			unreadable = append(unreadable, region{off, next})
			off = next
			continue
		}
		one, err := c.payload(r)
		if err != nil {
			return err
		}
		c.records = append(c.records, one)
		c.attested = max(c.attested, r.attested)
		off = min(r.end(), c.size)
	}
	for _, u := range unreadable {
		if !c.payloads || u.from < c.attested {
			c.damage = append(c.damage, u)
		} else {
			c.torn = append(c.torn, u)
		}
	}
	// A payload that is wrong where nobody attested it is torn as a whole: the
	// record counts for nothing.
	c.records = slices.DeleteFunc(c.records, func(r scanned) bool {
		torn := r.damaged && c.payloads && r.offset >= c.attested
		switch {
		case torn:
			c.torn = append(c.torn, region{r.offset, min(r.end(), c.size)})
		case r.damaged:
			c.damage = append(c.damage, region{r.offset, r.end()})
		}
		return torn
	})
	return nil
}

// header reads the record header at off.
func (c *scan) header(off int64) (record, bool, error) {
	if c.size-off < recordHeaderBytes {
		return record{}, false, nil
	}
	var b [recordHeaderBytes]byte
	if _, err := c.file.ReadAt(b[:], off); err != nil {
		return record{}, false, fmt.Errorf("read record at %d: %w", off, err)
	}
	r, ok := decodeRecord(b[:], c.mark, off)
	// The padding alone may be missing: it says nothing.
	if !ok || r.payload()+r.length > c.size || r.kind == kindBody && r.length > int64(BodyBytesMax) {
		return record{}, false, nil
	}
	return r, true, nil
}

// scanBufferBytes is what a scan reads at a time.
const scanBufferBytes = 256 << 10

// payload checks the payload of r as far as that is wanted.
func (c *scan) payload(r record) (scanned, error) {
	one := scanned{record: r}
	switch {
	case r.kind == kindDeletions && r.length <= deletionsPerRecordMax*deletionBytes:
		b := make([]byte, r.length)
		_, err := c.file.ReadAt(b, r.payload())
		if one.damaged = err != nil || checksum(b) != r.payloadCRC; !one.damaged {
			one.deletions = decodeDeletions(b)
		}
	case r.kind == kindBody && c.payloads:
		sum, err := c.sum(r)
		one.damaged = err != nil || sum != r.payloadCRC
	}
	return one, nil
}

// sum returns the checksum of r's payload.
func (c *scan) sum(r record) (uint32, error) {
	var sum uint32
	section := io.NewSectionReader(c.file, r.payload(), r.length)
	buf := make([]byte, min(scanBufferBytes, r.length))
	for {
		n, err := section.Read(buf)
		sum = extendChecksum(sum, buf[:n])
		if errors.Is(err, io.EOF) || len(buf) == 0 {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// next returns the offset of the first good header from off on, or the size.
// The mark makes it certain that it is one of ours.
func (c *scan) next(off int64) (int64, error) {
	buf := make([]byte, scanBufferBytes)
	for off < c.size {
		b := buf[:min(int64(len(buf)), c.size-off)]
		if _, err := c.file.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("search for a record from %d: %w", off, err)
		}
		for from := 0; ; {
			i := bytes.Index(b[from:], c.mark[:])
			if i < 0 {
				break
			}
			at := off + int64(from+i)
			if at%recordAlign == 0 {
				if _, ok, err := c.header(at); ok || err != nil {
					return at, err
				}
			}
			from += i + 1
		}
		// A mark may begin in the last bytes of this piece.
		off += int64(len(b)) - min(int64(len(b)-1), recordAlign-1)
		if c.size-off < recordHeaderBytes {
			break
		}
	}
	return c.size, nil
}
