package segment_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const (
	dir   = "/data/records"
	store = "test"

	kindThing segment.Kind = 7
)

// label names the n-th record of a test, and octets is its payload.
func label(n int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func number(label []byte) int { return int(binary.BigEndian.Uint64(label)) }

func octets(n, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := 0; i < size; i += 8 {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], r.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

// A delivery is what one Open delivered.
type delivery struct {
	records map[int]segment.Record
	damaged map[int]bool
	order   []int
}

func openSet(fs vfs.FS, o segment.Options) (*segment.Set, *delivery, error) {
	if o.Store == "" {
		o.Store = store
	}
	d := &delivery{records: make(map[int]segment.Record), damaged: make(map[int]bool)}
	s, err := segment.Open(fs, dir, o, func(r segment.Record) error {
		n := number(r.Label)
		r.Label = bytes.Clone(r.Label)
		d.records[n] = r
		d.damaged[n] = r.Damaged
		d.order = append(d.order, n)
		return nil
	})
	return s, d, err
}

func open(t testing.TB, fs vfs.FS, o segment.Options) (*segment.Set, *delivery) {
	t.Helper()
	s, d, err := openSet(fs, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s, d
}

func add(t testing.TB, s *segment.Set, n, size int) segment.Place {
	t.Helper()
	b := octets(n, size)
	at, err := s.Append(kindThing, label(n), segment.NewPayload(b[:size/3], b[size/3:]))
	if err != nil {
		t.Fatalf("append %d: %v", n, err)
	}
	return at
}

// chunked returns octets in memory like that of a body: chunks that begin at pages.
func chunked(n, size int) [][]byte {
	const chunk = 64 << 10
	var chunks [][]byte
	for b := octets(n, size); len(b) > 0; b = b[min(len(b), chunk):] {
		c := vfs.Aligned(chunk)
		chunks = append(chunks, c[:copy(c, b)])
	}
	return chunks
}

// addChunked is add with a payload as a body has it.
func addChunked(t testing.TB, s *segment.Set, n, size int) segment.Place {
	t.Helper()
	at, err := s.Append(kindThing, label(n), segment.NewPayload(chunked(n, size)...))
	if err != nil {
		t.Fatalf("append %d: %v", n, err)
	}
	return at
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read returns an error unless the record at that place is the n-th, of that
// size.
func read(s *segment.Set, at segment.Place, n, size int) error {
	r, err := s.Reader(at.Segment)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	rec, payload, err := r.Read(at, nil)
	if err != nil {
		return err
	}
	if rec.Kind != kindThing || !bytes.Equal(rec.Label, label(n)) || !bytes.Equal(payload, octets(n, size)) {
		return fmt.Errorf("record %d reads wrong: kind %d, label %x, %d octets", n, rec.Kind, rec.Label, len(payload))
	}
	return nil
}
