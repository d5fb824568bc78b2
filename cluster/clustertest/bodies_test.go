package clustertest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := NewBodyNet(NewNetwork(1, time.Millisecond, time.Millisecond))
		disks := map[string]*BodyDisk{"a": NewBodyDisk(1, time.Millisecond), "b": NewBodyDisk(2, time.Millisecond)}
		a, b := disks["a"].Open("a", net), disks["b"].Open("b", net)
		ref := mail.NewBody([]byte("x")).Ref(mail.QueueID{1})
		arrived := b.Arrived(ref)
		net.Network.Cut("a", "b")
		b.WantFrom(ref, "a")
		if err := a.Put(ref); err != nil {
			t.Fatal(err)
		}
		select {
		case <-arrived:
			t.Error("fetched through a cut")
		case <-time.After(time.Second):
		}
		net.Network.HealAll()
		<-arrived
		if !b.Held(ref) || b.Verify(ref) != nil {
			t.Error("arrived and not held")
		}
		// Pinned or doomed, never both.
		release, held := b.Pin(ref)
		if !held || len(b.Doom([]mail.BodyRef{ref})) != 0 {
			t.Error("a pinned body was doomed")
		}
		release()
		release()
		if len(b.Doom([]mail.BodyRef{ref})) != 1 {
			t.Error("not doomed")
		}
		if _, held := b.Pin(ref); held {
			t.Error("a doomed body was pinned")
		}
		if err := b.Delete([]mail.BodyRef{ref}); err != nil || b.Held(ref) {
			t.Errorf("delete: %v", err)
		}
		// Rot is found by reading only, and cured by a peer.
		if err := a.Push(ref, "b"); err != nil {
			t.Error(err)
		}
		if !disks["b"].Rot(ref) || !b.Held(ref) || !errors.Is(b.Verify(ref), ErrRotten) {
			t.Error("rot")
		}
		if err := b.Repair(context.Background(), ref); err != nil || !disks["b"].Has(ref) {
			t.Errorf("repair: %v", err)
		}
		disks["b"].SetFull(true)
		if err := b.Put(mail.NewBody(nil).Ref(mail.QueueID{2})); !errors.Is(err, ErrFull) {
			t.Errorf("full: %v", err)
		}
		b.Crash()
		if err := a.Push(ref, "b"); err == nil {
			t.Error("pushed to a dead member")
		}
		if err := b.Put(ref); !errors.Is(err, ErrKilled) {
			t.Errorf("a dead process: %v", err)
		}
		a.Crash()
		if got := disks["b"].Open("b", net).List(); len(got) != 1 || got[0].Ref != ref || !got[0].Since.Equal(time.Now()) {
			t.Errorf("after a restart: %v", got)
		}
	})
}
