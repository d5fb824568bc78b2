package node

import "sync"

// A memory lends the chunks that large bodies are kept in while they are in
// memory. What is given back is kept for the next body: up to a bound for good,
// and the rest until the garbage collector has run twice. So what is kept was
// lent at one time, which the budget of bodies bounds; many large bodies go
// through without new memory for each, which would all have to be collected; and
// a node that has nothing to do holds nothing.
type memory struct {
	kept chan []byte
	rest sync.Pool // of *[chunkBytes]byte
}

const (
	// chunkBytes is the size of a chunk.
	chunkBytes = 64 << 10
	// smallBytes is up to which size a body gets memory of its own: the
	// allocator is good at that.
	smallBytes = 32 << 10
	// chunksKept is how many chunks wait for the next body for good: 16 MiB.
	chunksKept = 256
)

func newMemory() *memory { return &memory{kept: make(chan []byte, chunksKept)} }

// Take implements mail.Memory.
func (m *memory) Take(n int) []byte {
	if n <= smallBytes {
		return make([]byte, 0, n)
	}
	select {
	case c := <-m.kept:
		return c
	default:
	}
	if c, ok := m.rest.Get().(*[chunkBytes]byte); ok {
		return c[:0]
	}
	return make([]byte, 0, chunkBytes)
}

// Give implements mail.Memory.
func (m *memory) Give(c []byte) {
	if cap(c) != chunkBytes {
		return
	}
	select {
	case m.kept <- c[:0]:
	default:
		m.rest.Put((*[chunkBytes]byte)(c[:chunkBytes]))
	}
}
