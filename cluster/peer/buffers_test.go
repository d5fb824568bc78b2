package peer

import "testing"

// TestBuffers: whatever is asked for is as long as that, and what is given back is
// lent again only where it is long enough.
func TestBuffers(t *testing.T) {
	b := newBuffers()
	for _, length := range []int{0, 1, smallBufferBytes - 1, smallBufferBytes, smallBufferBytes + 1, frameBufferBytes, frameBufferBytes + 1, messageBytesMax + 1} {
		for range 3 {
			got := b.Get(length)
			if len(*got) != length {
				t.Fatalf("%d octets, want %d", len(*got), length)
			}
			for i := range *got {
				(*got)[i] = 1
			}
			*got = (*got)[:length/2] // gRPC may give back less than it got
			b.Put(got)
		}
	}
	for _, foreign := range []int{0, 3, smallBufferBytes + 1} {
		made := make([]byte, foreign)
		b.Put(&made)
		if got := b.Get(foreign + 1); len(*got) != foreign+1 {
			t.Errorf("%d octets, want %d", len(*got), foreign+1)
		}
	}
}
