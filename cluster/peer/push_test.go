package peer

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestPushStoresBodies(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		var wg sync.WaitGroup
		for i, size := range []int{0, 1, 1000, frameBytesMax, frameBytesMax + 1, 5 << 20, 70 << 20} {
			ref, body := body(byte(i), size)
			wg.Go(func() {
				if err := a.push(t.Context(), ref, body, "b"); err != nil {
					t.Error(err)
					return
				}
				got, ok := at.holds(ref)
				if !ok || mail.NewBody(got).Ref(ref.ID) != ref {
					t.Errorf("body %d of %d octets acknowledged, and not held as it was sent", i, size)
				}
			})
		}
		wg.Wait()
	})
}

// TestAckFollowsStore: the ack is sent after StoreBody has returned, and bodies
// are stored at the same time, so that they share an fsync.
func TestAckFollowsStore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		fsync := make(chan struct{})
		storing := make(chan mail.BodyRef, 3)
		at := &backend{storeBody: func(ref mail.BodyRef) error { storing <- ref; <-fsync; return nil }}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		acks := make(chan error, 3)
		for i := range byte(3) {
			ref, body := body(i, 3000)
			go func() { acks <- a.push(t.Context(), ref, body, "b") }()
		}
		for range 3 {
			<-storing
		}
		synctest.Wait()
		select {
		case err := <-acks:
			t.Fatalf("acknowledged (%v) before the body was stored", err)
		default:
		}
		close(fsync)
		for range 3 {
			if err := <-acks; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTakenComesBeforeStored: whoever waits hears of a body when the peer has taken
// it, and only then; its place and its memory over there are kept until it is
// stored.
func TestTakenComesBeforeStored(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		fsync := make(chan error)
		at := &backend{early: []int{0}, storeBody: func(mail.BodyRef) error { return <-fsync }}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		ref, octets := body(1, 3000)
		for _, end := range []error{nil, errors.New("disk")} {
			told, unread := 0, 0
			push := a.peers.Push(ref, octets, "b", Taken, func(err error) {
				if told++; err != nil {
					t.Error(err)
				}
			})
			push.Detach(func() { unread++ })
			synctest.Wait()
			b.server.mu.Lock()
			in := b.server.inboxes["a"]
			b.server.mu.Unlock()
			in.mu.Lock()
			held := in.bodies
			in.mu.Unlock()
			if told != 1 || unread != 0 || held != 1 {
				t.Errorf("taken: told %d times, unread %d times, %d bodies over there", told, unread, held)
			}
			fsync <- end
			time.Sleep(storedDelay)
			synctest.Wait()
			in.mu.Lock()
			held = in.bodies
			in.mu.Unlock()
			if told != 1 || unread != 1 || held != 0 {
				t.Errorf("stored (%v): told %d times, unread %d times, %d bodies over there", end, told, unread, held)
			}
		}
	})
}

func TestPushRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		ref, good := body(1, 300_000)
		other := mail.NewBody(bytes.Repeat([]byte("x"), 300_000))
		_, short := body(1, 299_999)
		_, long := body(1, 300_001)
		for name, bad := range map[string]*mail.Body{"digest": other, "too short": short, "too long": long} {
			if err := a.push(t.Context(), ref, bad, "b"); !errors.Is(err, ErrMismatch) {
				t.Errorf("%s: %v, want ErrMismatch", name, err)
			}
		}
		if at.stored != 0 {
			t.Errorf("%d bodies that do not match were stored", at.stored)
		}
		at.storeBody = func(mail.BodyRef) error { return errors.New("no space left on device") }
		if err := a.push(t.Context(), ref, good, "b"); !errors.Is(err, ErrNotStored) {
			t.Errorf("store failed: %v, want ErrNotStored", err)
		}
		at.storeBody = nil
		if err := a.push(t.Context(), ref, good, "b"); err != nil {
			t.Errorf("the stream did not survive the refusals: %v", err)
		}
		huge := ref
		huge.Size = BodyBytesMax + 1
		if err := a.push(t.Context(), huge, new(mail.Body), "b"); !errors.Is(err, ErrTooLarge) {
			t.Errorf("body over the limit: %v, want ErrTooLarge", err)
		}
	})
}

// TestPushReconnects: a push that was under way when the peer went arrives
// when it is back.
func TestPushReconnects(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		stuck := make(chan struct{})
		before := &backend{storeBody: func(mail.BodyRef) error { <-stuck; return errors.New("gone") }}
		a, b := w.start("a", new(backend)), w.start("b", before)
		defer a.close()
		acks := make(chan error, 20)
		for i := range byte(20) {
			ref, body := body(i, 100_000*int(i))
			go func() { acks <- a.push(t.Context(), ref, body, "b") }()
		}
		synctest.Wait()
		go func() { time.Sleep(time.Second); close(stuck) }()
		_ = b.port.Close() // As if killed: connections first.
		b.close()
		time.Sleep(time.Minute) // The bubble's clock.
		synctest.Wait()
		select {
		case err := <-acks:
			t.Fatalf("acknowledged (%v) while the peer was away", err)
		default:
		}
		after := new(backend)
		b = w.start("b", after)
		defer b.close()
		for range 20 {
			if err := <-acks; err != nil {
				t.Error(err)
			}
		}
		if after.stored != 20 {
			t.Errorf("%d bodies stored after the restart, want 20", after.stored)
		}
	})
}

// TestNewerStreamEndsOlder: a peer whose connection hangs, as after a cut, gets
// through on a new one at once.
func TestNewerStreamEndsOlder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := &backend{early: []int{0}}
		old, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer old.close()
		ref, body1 := body(1, 1000)
		if err := old.push(t.Context(), ref, body1, "b"); err != nil {
			t.Fatal(err)
		}
		renewed := w.start("a", new(backend)) // The same name once more.
		defer renewed.close()
		began := time.Now()
		ref, body2 := body(2, 1000)
		if err := renewed.push(t.Context(), ref, body2, "b"); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the new stream waited %v for the old one", waited)
		}
		b.server.mu.Lock()
		defer b.server.mu.Unlock()
		if len(b.server.inboxes) != 1 {
			t.Errorf("%d inboxes, want 1", len(b.server.inboxes))
		}
	})
}

// TestPushQueueIsBounded: a peer that stores nothing, or is not there, takes
// no more than its queue, and costs another peer's pushes nothing.
func TestPushQueueIsBounded(t *testing.T) {
	for _, to := range []string{"dead", "stuck"} {
		t.Run(to, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				release := make(chan struct{})
				stuck := &backend{storeBody: func(mail.BodyRef) error { <-release; return nil }}
				a, s, b := w.start("a", new(backend)), w.start("stuck", stuck), w.start("b", new(backend))
				defer s.close()
				defer b.close()
				defer a.close()
				defer close(release)
				ctx, cancel := context.WithCancel(t.Context())
				results := make(chan error, 200)
				ref, big := body(1, 1<<20)
				for i := range 200 {
					ref := ref
					ref.ID[15] = byte(i)
					go func() { results <- a.push(ctx, ref, big, to) }()
					synctest.Wait()
				}
				full := len(results)
				for range full {
					if err := <-results; !errors.Is(err, ErrQueueFull) {
						t.Errorf("%v, want ErrQueueFull", err)
					}
				}
				want := 200 - 64 // lineBytesMax in MiB
				if to == "stuck" {
					want -= 16 // windowBytesMax in MiB
				}
				if full != want {
					t.Errorf("%d of 200 pushes of 1 MiB refused, want %d", full, want)
				}
				ref, small := body(2, 100)
				if err := a.push(ctx, ref, small, "b"); err != nil {
					t.Errorf("push to another peer: %v", err)
				}
				cancel()
				for range 200 - full {
					if err := <-results; !errors.Is(err, context.Canceled) {
						t.Errorf("%v, want Canceled", err)
					}
				}
				p := a.peers.byName[to].pusher
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.line) != 0 || p.lineOctets != 0 {
					t.Errorf("%d bodies, %d octets in line after all callers left", len(p.line), p.lineOctets)
				}
			})
		})
	}
}

// TestAbandonedBodies: a caller that leaves frees its place in the window, on
// both sides, and the stream goes on.
func TestAbandonedBodies(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.delay = 10 * time.Millisecond
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		ref, small := body(98, 100)
		if err := a.push(t.Context(), ref, small, "b"); err != nil {
			t.Fatal(err)
		}
		b.server.mu.Lock()
		in := b.server.inboxes["a"]
		b.server.mu.Unlock()
		for i := range byte(20) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*30*time.Millisecond)
			ref, large := body(i, 6<<20)
			err := a.push(ctx, ref, large, "b")
			if i == 0 && err == nil || i == 10 && at.stored > 1 {
				t.Fatal("the bodies arrive before their callers leave: nothing is tested")
			}
			cancel()
		}
		ref, large := body(99, 30<<20)
		if err := a.push(t.Context(), ref, large, "b"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p := a.peers.byName["b"].pusher
		p.mu.Lock()
		defer p.mu.Unlock()
		b.server.mu.Lock()
		if b.server.inboxes["a"] != in {
			t.Error("the stream broke")
		}
		b.server.mu.Unlock()
		in.mu.Lock()
		defer in.mu.Unlock()
		if len(p.window) != 0 || p.windowOctets != 0 || in.bodies != 0 || in.octets != 0 {
			t.Errorf("windows not empty: %d bodies, %d octets here; %d, %d there", len(p.window), p.windowOctets, in.bodies, in.octets)
		}
	})
}
