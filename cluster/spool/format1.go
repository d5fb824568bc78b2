package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The first format had segments of its own, which Open takes over: it gives them
// another name, so that they are not taken for segments of today, puts what is
// live in them as if it had come now, and removes them one by one. A crash in
// the middle leaves some of them to the next Open.
//
// A file begins with 64 octets, which stand again at 2048: "hfspool\n", version
// (1), segment number, mark, and at 60 the CRC32C of bytes 0-59. Records follow
// from 4096 on, each at a multiple of 8:
//
//	bytes 0-7     mark of the segment
//	bytes 8-11    kind: 1 body, 2 deletions; others do not matter here
//	bytes 12-15   CRC32C of the payload
//	bytes 16-23   length of the payload
//	bytes 24-31   offset of this record in the file
//	bytes 40-55   queue id
//	bytes 56-87   SHA-256
//	bytes 92-95   CRC32C of bytes 0-91
//	bytes 96-     payload, then zeros up to a multiple of 8
//
// A deletion is 32 octets: queue id, segment number, zeros, offset.
const (
	magic1        = "hfspool\n"
	suffix1       = ".seg"
	asideSuffix1  = ".old" // what such a file is called once it is set aside
	headBytes1    = 4096
	headTwin1     = 2048
	recordBytes1  = 96
	deletionSize1 = 32
	lockName      = "LOCK"
)

// A place1 is where a record of the first format lies.
type place1 struct {
	segment uint32
	offset  int64
}

func fileName1(n uint32, suffix string) string { return fmt.Sprintf("%08d%s", n, suffix) }

func parseFileName1(name, suffix string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && fileName1(uint32(n), suffix) == name
}

// setFormat1Aside renames the segments of the first format in dir, and returns
// the numbers of those that were renamed now or before.
func setFormat1Aside(fs vfs.FS, dir string) (numbers []uint32, err error) {
	if err := fs.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make spool directory: %w", err)
	}
	lock, err := fs.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	renamed := false
	for _, name := range names {
		if n, ok := parseFileName1(name, asideSuffix1); ok {
			numbers = append(numbers, n)
			continue
		}
		n, ok := parseFileName1(name, suffix1)
		if !ok {
			continue
		}
		old, err := isFormat1(fs, filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", n, err)
		}
		if !old {
			continue
		}
		if err := fs.Rename(filepath.Join(dir, name), filepath.Join(dir, fileName1(n, asideSuffix1))); err != nil {
			return nil, fmt.Errorf("set segment %d aside: %w", n, err)
		}
		renamed = true
		numbers = append(numbers, n)
	}
	if renamed {
		if err := fs.SyncDir(dir); err != nil {
			return nil, fmt.Errorf("sync spool directory: %w", err)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// isFormat1 reports whether a segment file is of the first format. One that is
// too short for a head of today was left by a crash then.
func isFormat1(fs vfs.FS, name string) (bool, error) {
	f, err := fs.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	if size <= headBytes1 {
		return true, nil
	}
	_, ok := readMark1(f)
	return ok, nil
}

// readMark1 returns the mark of a segment of the first format.
func readMark1(f vfs.File) (mark [8]byte, ok bool) {
	for _, at := range []int64{0, headTwin1} {
		b := make([]byte, 64)
		if n, _ := f.ReadAt(b, at); n < len(b) {
			continue
		}
		if string(b[:8]) == magic1 && binary.BigEndian.Uint32(b[60:]) == checksum1(b[:60]) {
			return [8]byte(b[16:24]), true
		}
	}
	return mark, false
}

func checksum1(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// A takeOver1 reads the segments of the first format.
type takeOver1 struct {
	fs     vfs.FS
	dir    string
	bodies map[mail.QueueID]body1
	dead   map[place1]bool
}

// A body1 is the latest record of a body.
type body1 struct {
	ref mail.BodyRef
	at  place1
}

// takeOver puts what is live in segments that were set aside, and removes them.
// Tombstones stand in the file of the record that they are about, or in a later
// one. So the files are removed in the order of their numbers, each removal
// durable before the next.
func (s *Spool) takeOver(fs vfs.FS, numbers []uint32) error {
	t := &takeOver1{fs: fs, dir: s.dir, bodies: make(map[mail.QueueID]body1), dead: make(map[place1]bool)}
	unreadable := make(map[uint32]bool)
	for _, n := range numbers {
		ok, err := t.read(n)
		if err != nil {
			return fmt.Errorf("segment %d of the first format: %w", n, err)
		}
		if unreadable[n] = !ok; !ok {
			s.log.Error("segment of the first format cannot be read: its header is damaged", "dir", s.dir, "segment", n)
		}
	}
	for _, n := range numbers {
		if unreadable[n] {
			continue // left for whoever can read it
		}
		taken, lost, err := s.takeOverSegment(t, n)
		if err != nil {
			return fmt.Errorf("take segment %d of the first format over: %w", n, err)
		}
		s.log.Info("segment of the first format is taken over", "dir", s.dir, "segment", n, "bodies", taken, "damaged", lost)
	}
	return nil
}

func (s *Spool) takeOverSegment(t *takeOver1, n uint32) (taken, lost int, err error) {
	name := filepath.Join(s.dir, fileName1(n, asideSuffix1))
	f, err := t.fs.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	var batch []*job
	var size int64
	put := func() error {
		var failed error
		for _, j := range batch {
			j.done = func(err error) {
				if err != nil {
					failed = fmt.Errorf("put body %s: %w", j.body.ref, err)
					return
				}
				taken++
			}
		}
		s.commit(batch) // answers before it returns
		if failed != nil {
			return failed
		}
		batch, size = nil, 0
		return nil
	}
	for _, b := range t.live(n) {
		octets := new(mail.Body)
		section := io.NewSectionReader(f, b.at.offset+recordBytes1, int64(b.ref.Size))
		if _, err := io.Copy(octets, section); err != nil && !vfs.Unreadable(err) {
			return taken, lost, err
		}
		if octets.Ref(b.ref.ID) != b.ref {
			lost++ // damaged, or torn by the last crash
			continue
		}
		batch = append(batch, newPut(b.ref, octets))
		if size += int64(b.ref.Size); size >= batchBytesMax || len(batch) == batchJobsMax {
			if err := put(); err != nil {
				return taken, lost, err
			}
		}
	}
	if err := put(); err != nil {
		return taken, lost, err
	}
	if err := t.fs.Remove(name); err != nil {
		return taken, lost, err
	}
	return taken, lost, t.fs.SyncDir(s.dir)
}

// live returns the bodies that segment n has the latest record of, in the order
// of the file.
func (t *takeOver1) live(n uint32) (bodies []body1) {
	for _, b := range t.bodies {
		if b.at.segment == n && !t.dead[b.at] {
			bodies = append(bodies, b)
		}
	}
	slices.SortFunc(bodies, func(a, b body1) int { return int(a.at.offset - b.at.offset) })
	return bodies
}

// read takes note of the records of one file. It reports false if the file's
// header cannot be read.
func (t *takeOver1) read(n uint32) (bool, error) {
	f, err := t.fs.Open(filepath.Join(t.dir, fileName1(n, asideSuffix1)))
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	mark, ok := readMark1(f)
	if !ok {
		return size <= headBytes1, nil // a crash while it was begun: nothing is in it
	}
	for off := int64(headBytes1); off < size; {
		next, err := t.record(f, mark, place1{n, off}, size)
		if err != nil {
			return false, err
		}
		if next == 0 { // damaged: go on at the next mark
			if next, err = t.search(f, mark, off+8, size); err != nil {
				return false, err
			}
		}
		off = next
	}
	return true, nil
}

// record takes note of the record at that place and returns where the next one
// is, 0 if there is no record.
func (t *takeOver1) record(f vfs.File, mark [8]byte, at place1, size int64) (next int64, err error) {
	var b [recordBytes1]byte
	if n, err := f.ReadAt(b[:], at.offset); n < len(b) {
		if err != nil && !errors.Is(err, io.EOF) && !vfs.Unreadable(err) {
			return 0, err
		}
		return 0, nil
	}
	length := int64(binary.BigEndian.Uint64(b[16:]))
	if !bytes.Equal(b[:8], mark[:]) || binary.BigEndian.Uint32(b[92:]) != checksum1(b[:92]) ||
		int64(binary.BigEndian.Uint64(b[24:])) != at.offset || length < 0 || at.offset+recordBytes1+length > size {
		return 0, nil
	}
	switch binary.BigEndian.Uint32(b[8:]) {
	case 1:
		ref := mail.BodyRef{ID: mail.QueueID(b[40:56]), Digest: mail.Digest(b[56:88]), Size: mail.ByteSize(length)}
		t.bodies[ref.ID] = body1{ref, at}
	case 2:
		payload := make([]byte, min(length, 1024*deletionSize1))
		if n, err := f.ReadAt(payload, at.offset+recordBytes1); n < len(payload) {
			if err != nil && !vfs.Unreadable(err) {
				return 0, err
			}
			break
		}
		if checksum1(payload) != binary.BigEndian.Uint32(b[12:]) {
			break
		}
		for ; len(payload) >= deletionSize1; payload = payload[deletionSize1:] {
			t.dead[place1{binary.BigEndian.Uint32(payload[16:]), int64(binary.BigEndian.Uint64(payload[24:]))}] = true
		}
	}
	return at.offset + recordBytes1 + (length+7)/8*8, nil
}

// search returns the offset of the next mark at a multiple of 8, or the size.
func (t *takeOver1) search(f vfs.File, mark [8]byte, off, size int64) (int64, error) {
	buf := make([]byte, 256<<10) // a multiple of 8: a mark does not lie across two
	for ; off < size; off += int64(len(buf)) {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) && !vfs.Unreadable(err) {
			return 0, err
		}
		for i := 0; i+8 <= n; i += 8 {
			if bytes.Equal(buf[i:i+8], mark[:]) {
				return off + int64(i), nil
			}
		}
	}
	return size, nil
}
