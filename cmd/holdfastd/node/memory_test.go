package node

import (
	"bytes"
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
		if got := len(m.kept); got != 5 {
			t.Errorf("%d chunks kept, want 5", got)
		}
		if b.Size() != mail.ByteSize(len(large)) || len(b.Chunks()) != 0 {
			t.Error("a body that was given back has octets, or lost its size")
		}
	}
	small := mail.NewBodyIn(m, 100)
	_, _ = small.Write(large[:100])
	small.Free()
	for range 2 * chunksKept {
		m.Give(make([]byte, 0, chunkBytes))
	}
	if got := len(m.kept); got != chunksKept {
		t.Errorf("%d chunks kept, want %d", got, chunksKept)
	}
}
