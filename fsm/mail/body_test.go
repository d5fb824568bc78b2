package mail

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"
)

func TestBodyRefs(t *testing.T) {
	for _, want := range []BodyRef{
		{},
		{ID: QueueID{1, 2, 3}, Digest: sha256.Sum256([]byte("x")), Size: 1},
		{ID: QueueID{255}, Digest: Digest{255}, Size: 1<<63 - 1},
	} {
		b := want.Encode()
		if len(b) != BodyRefBytes {
			t.Errorf("%d bytes, want %d", len(b), BodyRefBytes)
		}
		if got, err := DecodeBodyRef(b); err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	good := BodyRef{Size: 7}.Encode()
	negative := BodyRef{Size: -1}.Encode()
	version := bytes.Clone(good)
	version[0] = 2
	for what, b := range map[string][]byte{
		"nothing": nil, "cut short": good[:BodyRefBytes-1], "too long": append(good, 0), "version 2": version, "negative size": negative,
	} {
		if r, err := DecodeBodyRef(b); err == nil {
			t.Errorf("%s is read as %v", what, r)
		}
	}
}

func TestDigests(t *testing.T) {
	d, err := DigestFromBytes(bytes.Repeat([]byte{0xab}, 32))
	if err != nil || d[31] != 0xab || len(d.String()) != 64 {
		t.Errorf("%v, %v", d, err)
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := DigestFromBytes(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are a digest", n)
		}
	}
}

func TestBodies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, bodyChunkBytesMin - 1, bodyChunkBytesMin, bodyChunkBytesMin + 1, bodyChunkBytesMax + 1, 3<<20 + 17} {
		octets := make([]byte, size)
		for i := range octets {
			octets[i] = byte(r.Uint32())
		}
		b := NewBodyFor(ByteSize(r.IntN(2 * max(size, 1)))) // right, too small, too large
		for rest := octets; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(100_000))
			piece := bytes.Clone(rest[:n])
			if m, err := b.Write(piece); m != n || err != nil {
				t.Fatalf("write %d: %d, %v", n, m, err)
			}
			clear(piece) // the body has its own copy
			rest = rest[n:]
		}
		if b.Size() != ByteSize(size) || b.Digest() != Digest(sha256.Sum256(octets)) {
			t.Errorf("%d octets: size %d, digest %s", size, b.Size(), b.Digest())
		}
		if got := bytes.Join(b.Chunks(), nil); !bytes.Equal(got, octets) {
			t.Errorf("%d octets: the chunks are others", size)
		}
		for _, c := range b.Chunks() {
			if len(c) == 0 || len(c) > bodyChunkBytesMax {
				t.Errorf("%d octets: a chunk of %d", size, len(c))
			}
		}
		for range 2 { // each reader begins at the beginning
			if got, err := io.ReadAll(b.Reader()); err != nil || !bytes.Equal(got, octets) {
				t.Errorf("%d octets: the reader gives others, %v", size, err)
			}
		}
		if ref := b.Ref(QueueID{9}); ref != (BodyRef{ID: QueueID{9}, Digest: b.Digest(), Size: b.Size()}) {
			t.Errorf("ref %v", ref)
		}
	}
	if NewBody(nil).Digest() != Digest(sha256.Sum256(nil)) || (&Body{}).Digest() != Digest(sha256.Sum256(nil)) {
		t.Error("digest of no octets")
	}
}

// TestBodiesHashedElsewhere: what somebody else says of the octets counts as long as
// their checksum is what he says, and else they are hashed.
func TestBodiesHashedElsewhere(t *testing.T) {
	octets := bytes.Repeat([]byte("octets "), 100_000)
	own := NewBody(octets)
	ref := own.Ref(QueueID{1})
	claimed := ref
	claimed.Digest = Digest{1, 2, 3} // so that we see whose it is
	altered := bytes.Clone(octets)
	altered[300_000] ^= 4
	for what, c := range map[string]struct {
		octets []byte
		sum    Checksum
		digest Digest
	}{
		"as he says":       {octets, own.Checksum(), Digest{1, 2, 3}},
		"one bit":          {altered, own.Checksum(), sha256.Sum256(altered)},
		"another checksum": {octets, own.Checksum() + 1, ref.Digest},
		"cut short":        {octets[:len(octets)-1], own.Checksum(), sha256.Sum256(octets[:len(octets)-1])},
		"nothing":          {nil, 0, sha256.Sum256(nil)},
	} {
		b := NewBodyOf(nil, claimed, c.sum)
		for rest := c.octets; len(rest) > 0; rest = rest[min(len(rest), 5000):] {
			_, _ = b.Write(rest[:min(len(rest), 5000)])
		}
		if got := b.Ref(QueueID{1}); got.Digest != c.digest || got.Size != ByteSize(len(c.octets)) {
			t.Errorf("%s: %v, want the digest %v", what, got.Digest, c.digest)
		}
		if !bytes.Equal(bytes.Join(b.Chunks(), nil), c.octets) {
			t.Errorf("%s: the octets are others", what)
		}
	}
}
