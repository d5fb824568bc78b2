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
	small [smallSizes]chan []byte // of smallBytesMin, and twice the one before
	kept  chan []byte
	rest  sync.Pool // of *[chunkBytes]byte
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
	m := &memory{kept: make(chan []byte, chunksKept)}
	for i := range m.small {
		m.small[i] = make(chan []byte, smallBytesKept/smallBytesMin>>i)
	}
	return m
}

// sizeOf returns the place in small of the chunks in which n octets fit.
func sizeOf(n int) int { return bits.Len(uint(max(n-1, 0) / smallBytesMin)) }

// Take implements mail.Memory.
func (m *memory) Take(n int) []byte {
	if n <= smallBytes {
		size := sizeOf(n)
		select {
		case c := <-m.small[size]:
			return c
		default:
			return make([]byte, 0, smallBytesMin<<size)
		}
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
	if n := cap(c); n >= smallBytesMin && n <= smallBytes && n&(n-1) == 0 {
		select {
		case m.small[sizeOf(n)] <- c[:0]:
		default:
		}
		return
	}
	if cap(c) != chunkBytes {
		return
	}
	select {
	case m.kept <- c[:0]:
	default:
		m.rest.Put((*[chunkBytes]byte)(c[:chunkBytes]))
	}
}
