package node

// A memory lends the chunks that large bodies are kept in while they are in
// memory. What is given back is kept for the next body, up to a bound.
type memory struct{ kept chan []byte }

const (
	// chunkBytes is the size of a chunk.
	chunkBytes = 64 << 10
	// smallBytes is up to which size a body gets memory of its own: the
	// allocator is good at that.
	smallBytes = 32 << 10
	// chunksKept is how many chunks wait for the next body: 16 MiB.
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
		return make([]byte, 0, chunkBytes)
	}
}

// Give implements mail.Memory.
func (m *memory) Give(c []byte) {
	if cap(c) != chunkBytes {
		return
	}
	select {
	case m.kept <- c[:0]:
	default:
	}
}
