package node

import (
	"math/bits"
	"sync"
)

// A memory lends the chunks that bodies are kept in while they are in memory.
// What is given back is kept for the next body: up to a bound for good, and of
// large chunks the rest until the garbage collector has run twice. So what is kept
// was lent at one time, which the budget of bodies bounds; many bodies go through
// without new memory for each, which would all have to be collected, and each
// collection goes through all that is queued.
type memory struct {
	small [smallSizes]stack // of chunks of smallBytesMin, and twice the one before
	kept  stack
	rest  sync.Pool // of *[chunkBytes]byte
}

// A stack keeps chunks. What came back last is lent first: it may still be in the
// processor's caches.
type stack struct {
	mu sync.Mutex
	// Invariant: no more than its capacity.
	chunks [][]byte
}

const (
	// chunkBytes is the size of a chunk.
	chunkBytes = 64 << 10
	// smallBytesMin and smallBytes are the sizes of the smallest and the largest
	// of the small chunks, and smallSizes how many sizes there are.
	smallBytesMin = 4 << 10
	smallBytes    = smallBytesMin << (smallSizes - 1)
	smallSizes    = 4
	// smallBytesKept is how many octets of each small size wait for the next body.
	smallBytesKept = 1 << 20
	// chunksKept is how many chunks wait for the next body for good: 16 MiB.
	chunksKept = 256
)

func newMemory() *memory {
	m := &memory{kept: newStack(chunksKept)}
	for i := range m.small {
		m.small[i] = newStack(smallBytesKept / smallBytesMin >> i)
	}
	return m
}

func newStack(most int) stack { return stack{chunks: make([][]byte, 0, most)} }

// take returns a chunk, nil where there is none.
func (s *stack) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.chunks) - 1
	if last < 0 {
		return nil
	}
	c := s.chunks[last]
	s.chunks[last] = nil
	s.chunks = s.chunks[:last]
	return c
}

// keep keeps c, if there is room.
func (s *stack) keep(c []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.chunks) == cap(s.chunks) {
		return false
	}
	s.chunks = append(s.chunks, c)
	return true
}

// sizeOf returns the place in small of the chunks in which n octets fit.
func sizeOf(n int) int { return bits.Len(uint(max(n-1, 0) / smallBytesMin)) }

// Take implements mail.Memory.
func (m *memory) Take(n int) []byte {
	if n <= smallBytes {
		size := sizeOf(n)
		if c := m.small[size].take(); c != nil {
			return c
		}
		return make([]byte, 0, smallBytesMin<<size)
	}
	if c := m.kept.take(); c != nil {
		return c
	}
	if c, ok := m.rest.Get().(*[chunkBytes]byte); ok {
		return c[:0]
	}
	return make([]byte, 0, chunkBytes)
}

// Give implements mail.Memory.
func (m *memory) Give(c []byte) {
	switch n := cap(c); {
	case n >= smallBytesMin && n <= smallBytes && n&(n-1) == 0:
		m.small[sizeOf(n)].keep(c[:0])
	case n == chunkBytes && !m.kept.keep(c[:0]):
		m.rest.Put((*[chunkBytes]byte)(c[:chunkBytes]))
	}
}
