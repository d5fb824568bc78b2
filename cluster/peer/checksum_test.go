package peer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestPushFindsAlteredMemory: octets that change between the sender's hash and the
// peer are refused.
func TestPushFindsAlteredMemory(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		ref, octets := body(1, 300_000)
		last := octets.Chunks()[len(octets.Chunks())-1]
		last[len(last)-1] ^= 0x20
		if err := a.push(t.Context(), ref, octets, "b"); !errors.Is(err, ErrMismatch) || at.stored != 0 {
			t.Errorf("%v, and %d stored; want ErrMismatch", err, at.stored)
		}
		last[len(last)-1] ^= 0x20
		if err := a.push(t.Context(), ref, octets, "b"); err != nil {
			t.Errorf("as it was: %v", err)
		}
	})
}

// TestArrivalsAreChecked: a body counts as what its reference says only if its
// checksum, or where there is none its digest, says so.
func TestArrivalsAreChecked(t *testing.T) {
	octets := bytes.Repeat([]byte("x"), 3000)
	good := mail.NewBody(octets)
	ref := good.Ref(mail.QueueID{1})
	other := ref
	other.Digest[0] ^= 1
	for what, c := range map[string]struct {
		ref  mail.BodyRef
		sum  *mail.Checksum
		want bool
	}{
		"checksum":                     {ref, new(good.Checksum()), true},
		"another checksum, hashed":     {ref, new(good.Checksum() + 1), true},
		"none, hashed":                 {ref, nil, true},
		"none, another digest":         {other, nil, false},
		"another checksum, and digest": {other, new(good.Checksum() + 1), false},
		"what a peer says is believed": {other, new(good.Checksum()), true},
	} {
		in := &inbox{arriving: make(map[uint64]*arrival), sizes: make(map[uint64]mail.ByteSize)}
		a, err := in.take(&frame{number: 1, ref: c.ref.Encode(), checksum: c.sum, data: [][]byte{octets[:1000], octets[1000:]}, last: true})
		if err != nil || a == nil {
			t.Fatalf("%s: %v, %v", what, a, err)
		}
		if got := a.body.Ref(c.ref.ID) == c.ref; got != c.want {
			t.Errorf("%s: taken for the body of its reference: %t, want %t", what, got, c.want)
		}
	}
}
