package node

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestMemoryIsLentAgain: what a body gave back serves the next one, up to the
// bound, and bodies in such memory hold what was written to them.
func TestMemoryIsLentAgain(t *testing.T) {
	m := newMemory()
	large := bytes.Repeat([]byte("0123456789abcdef"), 5*chunkBytes/16)
	for range 3 {
		b := mail.NewBodyIn(m, mail.ByteSize(len(large)))
		_, _ = b.Write(large)
		if got := bytes.Join(b.Chunks(), nil); !bytes.Equal(got, large) || b.Digest() != mail.NewBody(large).Digest() {
			t.Fatal("the body is not what was written")
		}
		b.Free()
		if got := len(m.kept.chunks); got != 5 {
			t.Errorf("%d chunks kept, want 5", got)
		}
		if b.Size() != mail.ByteSize(len(large)) || len(b.Chunks()) != 0 {
			t.Error("a body that was given back has octets, or lost its size")
		}
	}
	for _, size := range []int{0, 1, 100, 4096, 4097, 8192, 8193, 16384, 16385, 32768} {
		var last *byte
		for range 3 {
			small := mail.NewBodyIn(m, mail.ByteSize(size))
			_, _ = small.Write(large[:size])
			if got := bytes.Join(small.Chunks(), nil); !bytes.Equal(got, large[:size]) {
				t.Fatalf("%d octets: the body is not what was written", size)
			}
			if size > 0 {
				c := small.Chunks()
				if len(c) > 1 || cap(c[0]) < size || cap(c[0]) >= 2*max(size, smallBytesMin) || last != nil && last != &c[0][0] {
					t.Errorf("%d octets: %d chunks of %d, lent again: %v", size, len(c), cap(c[0]), last == &c[0][0])
				}
				last = &c[0][0]
			}
			small.Free()
		}
	}
	for range 2 * smallBytesKept / smallBytesMin {
		m.Give(make([]byte, 0, smallBytesMin))
	}
	if got := len(m.small[0].chunks) * smallBytesMin; got != smallBytesKept {
		t.Errorf("%d octets kept, want %d", got, smallBytesKept)
	}
	for range 2 * chunksKept {
		m.Give(make([]byte, 0, chunkBytes))
	}
	if got := len(m.kept.chunks); got != chunksKept {
		t.Errorf("%d chunks kept, want %d", got, chunksKept)
	}
}

// TestMemoryBeyondWhatIsKept is lent again, too, and goes when nobody needs it.
func TestMemoryBeyondWhatIsKept(t *testing.T) {
	const chunks = 4 * chunksKept
	m := newMemory()
	lent := make(map[*byte]bool)
	var all [][]byte
	for range chunks {
		c := m.Take(chunkBytes)
		lent[&c[:1][0]] = true
		all = append(all, c)
	}
	for _, c := range all {
		m.Give(append(c, 1))
	}
	all = nil
	again := 0
	for range chunks {
		c := m.Take(chunkBytes)
		if len(c) != 0 || cap(c) != chunkBytes {
			t.Fatalf("lent %d octets of %d", len(c), cap(c))
		}
		if lent[&c[:1][0]] {
			again++
		}
		all = append(all, c)
	}
	// The race detector has a pool forget some.
	if again < 2*chunksKept {
		t.Errorf("of %d chunks %d were lent again", chunks, again)
	}
	for _, c := range all {
		m.Give(c)
	}
	runtime.GC()
	runtime.GC()
	for range chunksKept {
		m.Take(chunkBytes)
	}
	if m.rest.Get() != nil {
		t.Error("the collector has run twice, and more is kept than the bound")
	}
}
