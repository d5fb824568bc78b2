package consensus

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// extensionsOfTests are all kinds of extensions.
func extensionsOfTests() []extension {
	ref := mail.NewBody([]byte("a body")).Ref(mail.MintQueueID(7, [10]byte{9}))
	empty := mail.BodyRef{}
	return []extension{
		{}, {body: &ref}, {body: &empty}, {term: 1}, {term: 1<<64 - 1},
		{term: 5, body: &ref}, {term: 0x0102030405060708, body: &empty},
	}
}

func (x extension) equal(y extension) bool {
	return x.term == y.term && (x.body == nil) == (y.body == nil) && (x.body == nil || *x.body == *y.body)
}

func command(extensions []byte) *raft.Log {
	return &raft.Log{Index: 3, Term: 5, Type: raft.LogCommand, Extensions: extensions}
}

// TestExtensionRoundTrip: what was written is read, and each way of writing is
// the only one.
func TestExtensionRoundTrip(t *testing.T) {
	seen := make(map[string]bool)
	for _, x := range extensionsOfTests() {
		b := x.encode()
		if seen[string(b)] {
			t.Errorf("%+v: written as another is", x)
		}
		seen[string(b)] = true
		got, err := extensionOf(command(b))
		if err != nil || !got.equal(x) {
			t.Errorf("%+v: read as %+v, %v", x, got, err)
		}
		if x.body != nil && x.term == 0 && !bytes.Equal(b, x.body.Encode()) {
			t.Errorf("%+v: an entry of its own is not written as it always was", x)
		}
		if limit := extensionTermBytes + mail.BodyRefBytes; len(b) > limit {
			t.Errorf("%+v: %d bytes, at most %d", x, len(b), limit)
		}
	}
}

// TestExtensionThatIsNone: whatever is not written exactly so is an error, and
// names no body: to take an unreadable name for none would append an entry
// without its body.
func TestExtensionThatIsNone(t *testing.T) {
	readable := make(map[string]bool)
	for _, x := range extensionsOfTests() {
		readable[string(x.encode())] = true
	}
	unreadable := func(what string, l *raft.Log) {
		t.Helper()
		if got, err := extensionOf(l); err == nil || got.body != nil {
			t.Errorf("%s: %x is read as %+v, %v", what, l.Extensions, got, err)
		}
		if ref, err := bodyOf(l); err == nil || ref != nil {
			t.Errorf("%s: %x names %v, %v", what, l.Extensions, ref, err)
		}
	}
	for _, x := range extensionsOfTests() {
		whole := x.encode()
		for n := 1; n < len(whole); n++ {
			// A name cut off at its very beginning leaves the term alone, which is
			// another entry's extension. Lengths are the log's to keep.
			if n == extensionTermBytes && whole[0] == extensionTermVersion {
				continue
			}
			unreadable("cut short", command(whole[:n]))
		}
		if len(whole) == 0 {
			continue
		}
		unreadable("with one more", command(append(bytes.Clone(whole), 0)))
		if x.body != nil {
			unreadable("with another name behind it", command(append(bytes.Clone(whole), x.body.Encode()...)))
		}
		for _, at := range []int{0, extensionTermBytes} {
			for v := range 256 {
				other := bytes.Clone(whole)
				if at >= len(other) || other[0] != extensionTermVersion && at > 0 {
					break
				}
				if other[at] = byte(v); !bytes.Equal(other, whole) {
					unreadable("another version", command(other))
				}
			}
		}
		for _, kind := range []raft.LogType{raft.LogNoop, raft.LogBarrier, raft.LogConfiguration} {
			l := command(whole)
			l.Type = kind
			unreadable("not a command", l)
		}
	}
	unreadable("no term", command(make([]byte, extensionTermBytes)))
	zero := make([]byte, extensionTermBytes)
	zero[0] = extensionTermVersion
	unreadable("term 0", command(zero))
	if _, err := extensionOf(command(zero)); !errors.Is(err, errExtension) {
		t.Errorf("term 0: %v", err)
	}
}

func FuzzExtension(f *testing.F) {
	for _, x := range extensionsOfTests() {
		f.Add(x.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := extensionOf(command(b))
		if err != nil {
			if x != (extension{}) {
				t.Fatalf("%x: %+v beside %v", b, x, err)
			}
			return
		}
		if !bytes.Equal(x.encode(), b) {
			t.Fatalf("%x is read as %+v, which is written %x", b, x, x.encode())
		}
	})
}
