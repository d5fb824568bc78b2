package peer

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestFetch(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		for i, size := range []int{0, 1, frameBytesMax, 3<<20 + 17} {
			ref, body := body(byte(i), size)
			if err := at.store(Arrived{ref, body}); err != nil {
				t.Fatal(err)
			}
			got, err := a.peers.Fetch(t.Context(), "b", ref, Urgent)
			if err != nil || got.Ref(ref.ID) != ref {
				t.Errorf("%d octets: %v", size, err)
			}
		}
		ref, good := body(50, 500_000)
		if _, err := a.peers.Fetch(t.Context(), "b", ref, Urgent); !errors.Is(err, ErrNotHeld) {
			t.Errorf("absent: %v, want ErrNotHeld", err)
		}
		wrong := bytes.Join(good.Chunks(), nil)
		wrong[400_000] ^= 1
		at.bodies[ref] = wrong
		if _, err := a.peers.Fetch(t.Context(), "b", ref, Urgent); !errors.Is(err, ErrMismatch) {
			t.Errorf("flipped bit: %v, want ErrMismatch", err)
		}
		at.bodies[ref] = wrong[:300_000]
		if _, err := a.peers.Fetch(t.Context(), "b", ref, Urgent); !errors.Is(err, ErrDamaged) {
			t.Errorf("truncated: %v, want ErrDamaged", err)
		}
		if _, err := a.peers.Fetch(t.Context(), "dead", ref, Urgent); !errors.Is(err, ErrUnreachable) {
			t.Errorf("dead peer: %v, want ErrUnreachable", err)
		}
	})
}

// TestFetchResumes: a fetch goes on behind what it has when the connection
// broke.
func TestFetchResumes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ref, data := body(1, 20<<20)
		whole := bytes.Join(data.Chunks(), nil)
		var mu sync.Mutex
		var offsets []int64
		at := &backend{}
		at.openBody = func(mail.BodyRef) (io.ReadSeekCloser, error) {
			return &breakingReader{Reader: bytes.NewReader(whole), seek: func(o int64) {
				mu.Lock()
				defer mu.Unlock()
				offsets = append(offsets, o)
			}, after: 6 << 20, breakNow: func() { w.net.breakConns("b") }}, nil
		}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		got, err := a.peers.Fetch(t.Context(), "b", ref, Urgent)
		if err != nil || got.Ref(ref.ID) != ref {
			t.Fatalf("fetch: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(offsets) < 2 {
			t.Fatalf("offsets %v: nothing broke", offsets)
		}
		for i := 1; i < len(offsets); i++ {
			if offsets[i] <= offsets[i-1] {
				t.Errorf("offsets %v: a resumed fetch began again", offsets)
			}
		}
	})
}

// A breakingReader breaks the connections after so many octets.
type breakingReader struct {
	*bytes.Reader
	seek     func(int64)
	after    int
	breakNow func()
}

func (r *breakingReader) Seek(o int64, whence int) (int64, error) {
	r.seek(o)
	return r.Reader.Seek(o, whence)
}

func (r *breakingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.after -= n; r.after < 0 && r.after+n >= 0 {
		r.breakNow()
	}
	return n, err
}

func (r *breakingReader) Close() error { return nil }
