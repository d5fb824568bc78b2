package peer

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// buffers lends what gRPC reads frames of HTTP/2 into, and gets it back when the
// octets have been copied into their body. gRPC's own pool clears the whole of
// each buffer before it lends it again, as if not all of it were overwritten: with
// large bodies, a fortieth of all processor time outside the kernel.
type buffers struct {
	small, frame sync.Pool // of *[]byte, with the capacities below
	others       mem.BufferPool
}

const (
	smallBufferBytes = 4 << 10
	// frameBufferBytes is the longest frame of HTTP/2 that gRPC sends.
	frameBufferBytes = 16 << 10
)

var _ mem.BufferPool = (*buffers)(nil)

func newBuffers() *buffers { return &buffers{others: mem.DefaultBufferPool()} }

// tier is where buffers of that capacity come from and go to, or nil.
func (b *buffers) tier(capacity int) *sync.Pool {
	switch capacity {
	case smallBufferBytes:
		return &b.small
	case frameBufferBytes:
		return &b.frame
	}
	return nil
}

// Get implements mem.BufferPool. What the buffer holds is of no meaning.
func (b *buffers) Get(length int) *[]byte {
	capacity := smallBufferBytes
	switch {
	case length > frameBufferBytes:
		return b.others.Get(length)
	case length > smallBufferBytes:
		capacity = frameBufferBytes
	}
	if lent, ok := b.tier(capacity).Get().(*[]byte); ok {
		*lent = (*lent)[:length]
		return lent
	}
	made := make([]byte, length, capacity)
	return &made
}

// Put implements mem.BufferPool.
func (b *buffers) Put(buffer *[]byte) {
	if tier := b.tier(cap(*buffer)); tier != nil {
		tier.Put(buffer)
		return
	}
	b.others.Put(buffer)
}
