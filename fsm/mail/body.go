package mail

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// ByteSize is a count of octets.
type ByteSize int64

// The units in which limits are written.
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
)

// A Digest is the SHA-256 of a body as it was received: after dot-unstuffing
// and after stray CR and LF were normalised, before any trace field.
type Digest [sha256.Size]byte

// DigestFromBytes reads the 32 bytes of a digest.
func DigestFromBytes(b []byte) (Digest, error) {
	var d Digest
	if len(b) != len(d) {
		return Digest{}, fmt.Errorf("digest of %d bytes, want %d", len(b), len(d))
	}
	copy(d[:], b)
	return d, nil
}

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// A Checksum is the CRC32C of octets: it finds damage, and costs a third of a
// Digest or less.
type Checksum uint32

// A BodyRef names one body: whose it is, what its octets hash to, and how many
// there are. A body is held only where all three match. This is the name that
// a Raft entry carries and that the append rule is about.
type BodyRef struct {
	ID     QueueID
	Digest Digest
	Size   ByteSize
}

// bodyRefVersion is the first byte of an encoded BodyRef.
const bodyRefVersion = 1

// BodyRefBytes is the length of an encoded BodyRef:
//
//	byte  0      version (1)
//	bytes 1-16   queue id
//	bytes 17-48  SHA-256
//	bytes 49-56  size, big endian
const BodyRefBytes = 1 + 16 + sha256.Size + 8

// Encode returns the binary form of r, BodyRefBytes long.
func (r BodyRef) Encode() []byte {
	b := make([]byte, 0, BodyRefBytes)
	b = append(b, bodyRefVersion)
	b = append(b, r.ID[:]...)
	b = append(b, r.Digest[:]...)
	for shift := 56; shift >= 0; shift -= 8 {
		b = append(b, byte(uint64(r.Size)>>shift))
	}
	return b
}

// DecodeBodyRef reads what Encode wrote. Anything else, an unknown version
// included, is an error: a name that cannot be read must never pass for no
// name at all.
func DecodeBodyRef(b []byte) (BodyRef, error) {
	if len(b) != BodyRefBytes || b[0] != bodyRefVersion {
		return BodyRef{}, fmt.Errorf("body reference: want %d bytes of version %d, got %d bytes", BodyRefBytes, bodyRefVersion, len(b))
	}
	var r BodyRef
	copy(r.ID[:], b[1:17])
	copy(r.Digest[:], b[17:49])
	for _, c := range b[49:57] {
		r.Size = r.Size<<8 | ByteSize(c)
	}
	if r.Size < 0 {
		return BodyRef{}, fmt.Errorf("body reference %s: negative size", r.ID)
	}
	return r, nil
}

// String returns the queue id and size, for logs.
func (r BodyRef) String() string { return fmt.Sprintf("%s (%d octets)", r.ID, r.Size) }

// A Body is the octets of one received message, kept in chunks so that a large
// one is never copied to grow, together with their count, their checksum and their
// running digest.
//
// Write to it while it is received; once it is handed over, nobody writes to it
// or to its chunks again, and any number of readers may read it.
type Body struct {
	memory Memory // nil: that of the garbage collector
	chunks [][]byte
	size   ByteSize
	expect ByteSize // how large it will be, as far as that is known
	check  Checksum
	sum    hash.Hash // nil where somebody else has hashed it
	claim  *claim    // what he says
}

// A claim is what somebody says of octets that he has hashed, and whose checksum
// he computed of the same octets at the same time.
type claim struct {
	ref BodyRef
	sum Checksum
}

// A Memory lends the chunks of bodies. Fresh memory costs more than the octets
// that are written to it, so large bodies had better use that of earlier ones. A
// Memory is safe for concurrent use.
type Memory interface {
	// Take returns memory of length 0 with room for some of the n octets to come.
	Take(n int) []byte
	// Give takes back what Take returned and nobody uses any more.
	Give(chunk []byte)
}

// The chunks that a Body grows by: large enough for what is expected, else each
// as large as all before it, within these bounds.
const (
	bodyChunkBytesMin = 4 << 10
	bodyChunkBytesMax = 256 << 10
)

// NewBody returns a Body that holds the given octets.
func NewBody(p []byte) *Body {
	b := NewBodyFor(ByteSize(len(p)))
	_, _ = b.Write(p)
	return b
}

// NewBodyFor returns an empty Body that takes its memory for about that many
// octets. It may become larger or stay smaller.
func NewBodyFor(expect ByteSize) *Body { return &Body{expect: expect} }

// NewBodyIn is NewBodyFor with the chunks from a Memory, to which Free gives
// them back.
func NewBodyIn(m Memory, expect ByteSize) *Body { return &Body{memory: m, expect: expect} }

// NewBodyOf is NewBodyIn for octets to come that somebody we believe has hashed:
// he gives them that name and that checksum. They are hashed here only if they are
// others.
func NewBodyOf(m Memory, ref BodyRef, sum Checksum) *Body {
	return &Body{memory: m, expect: ref.Size, claim: &claim{ref, sum}}
}

// Free gives the chunks back. Whoever calls it knows that nobody reads them any
// more, nor the Body; without a call the garbage collector has them in the end.
func (b *Body) Free() {
	if b.memory != nil {
		for _, c := range b.chunks {
			b.memory.Give(c)
		}
	}
	b.chunks = nil
}

// Write appends a copy of p. It never fails.
func (b *Body) Write(p []byte) (int, error) {
	if b.claim == nil {
		if b.sum == nil {
			b.sum = sha256.New()
		}
		b.sum.Write(p)
	}
	// Of p, as the digest, and not of the copy: what happens to that must be found.
	b.check = Checksum(crc32.Update(uint32(b.check), crc32.MakeTable(crc32.Castagnoli), p))
	for rest := p; len(rest) > 0; {
		last := len(b.chunks) - 1
		if last < 0 || len(b.chunks[last]) == cap(b.chunks[last]) {
			b.chunks = append(b.chunks, b.grow(b.chunkBytes(len(rest))))
			last++
		}
		c := b.chunks[last]
		n := min(len(rest), cap(c)-len(c))
		b.chunks[last] = append(c, rest[:n]...)
		b.size += ByteSize(n)
		rest = rest[n:]
	}
	return len(p), nil
}

func (b *Body) grow(n int) []byte {
	if b.memory != nil {
		return b.memory.Take(n)
	}
	return make([]byte, 0, n)
}

// chunkBytes is the size of the next chunk, of which so many octets are there.
func (b *Body) chunkBytes(here int) int {
	want := b.size + ByteSize(here)
	if b.expect > b.size {
		want = b.expect - b.size
	}
	return int(min(max(want, bodyChunkBytesMin), bodyChunkBytesMax))
}

// Size returns the number of octets written.
func (b *Body) Size() ByteSize { return b.size }

// Checksum returns the checksum of the octets as they were written.
func (b *Body) Checksum() Checksum { return b.check }

// Digest returns the SHA-256 of the octets written so far.
func (b *Body) Digest() Digest {
	var d Digest
	if b.claim != nil {
		if b.size == b.claim.ref.Size && b.check == b.claim.sum {
			return b.claim.ref.Digest
		}
		sum := sha256.New()
		for _, c := range b.chunks {
			sum.Write(c)
		}
		sum.Sum(d[:0])
		return d
	}
	if b.sum == nil {
		return sha256.Sum256(nil)
	}
	b.sum.Sum(d[:0])
	return d
}

// Ref names the body as that of message id.
func (b *Body) Ref(id QueueID) BodyRef {
	return BodyRef{ID: id, Digest: b.Digest(), Size: b.size}
}

// Chunks returns the octets in order, in pieces of at most 256 KiB. They are
// the body's own memory: read only.
func (b *Body) Chunks() [][]byte { return b.chunks }

// Reader returns a new reader over the octets.
func (b *Body) Reader() io.Reader {
	readers := make([]io.Reader, len(b.chunks))
	for i, c := range b.chunks {
		readers[i] = bytes.NewReader(c)
	}
	return io.MultiReader(readers...)
}
