package consensus

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestOnRealStores: three members on raft-boltdb and file snapshots. Messages
// are accepted and finished, their bodies deleted, everybody restarts, one of
// them from a snapshot that it is sent, and the floor is where it was.
func TestOnRealStores(t *testing.T) {
	dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir(), "c": t.TempDir()}
	inCluster(t, 3, clusterOptions{trailing: 8}, func(t *testing.T, c *testCluster) {
		for name, m := range c.members {
			m.open = func() (Stores, error) { return OpenStores(filepath.Join(dirs[name], "raft")) }
		}
		c.up()
		c.bootstrap()
		a := c.leader()
		behind := c.others(a.name)[0]
		c.must("all level", c.level)
		c.down(behind)
		refs := c.deliver(a, 20)
		live := c.mint()
		c.put(live, c.others(behind)...)
		if err := a.accept(patience, live); err != nil {
			t.Fatal(err)
		}
		c.must("all level", c.level)
		for _, name := range c.others(behind) { // whoever leads next
			if err := c.members[name].node().Snapshot(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		c.reclaimAll()
		floor := a.node().Floor()
		if floor == 0 || a.bodyDisk.Has(refs[0]) {
			t.Fatalf("floor %d, body held %v", floor, a.bodyDisk.Has(refs[0]))
		}
		c.down()
		c.up()
		if got := a.node().FloorAtStart(); got != floor {
			t.Errorf("floor after the restart %d, want %d", got, floor)
		}
		if !c.goesOn(patience) {
			t.Fatal("does not go on")
		}
		c.must("all level", c.level)
		p := c.members[behind].running()
		for _, ref := range append(refs, live) {
			if !p.fsm.knows(ref) {
				t.Errorf("%s does not know %s", behind, ref)
			}
		}
		if p.fsm.restores() == 0 {
			t.Errorf("%s got no snapshot", behind)
		}
		c.oracle.clean()
	})
}

// TestOpenStores: a second process is refused, and what was written is read
// after closing.
func TestOpenStores(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "raft")
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	ref := mail.NewBody([]byte("x")).Ref(mail.QueueID{1})
	entry := &raft.Log{Index: 1, Term: 2, Type: raft.LogCommand, Data: []byte("data"), Extensions: ref.Encode()}
	if err := errors.Join(s.Log.StoreLogs([]*raft.Log{entry}), s.Stable.SetUint64(floorKey, 7)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if second, err := OpenStores(dir); err == nil {
		t.Error("opened twice")
		_ = second.Close()
	} else if time.Since(began) > 10*lockTimeout {
		t.Errorf("refused after %v", time.Since(began))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenStores(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var n names
	if _, err := n.scan(s.Log, 0, nil); err != nil || len(n.entries) != 1 || n.entries[0] != (namedBody{1, ref}) {
		t.Errorf("scan: %v, %v", n.entries, err)
	}
	if f, err := openFloor(s.Stable, newLatch()); err != nil || f.atStart != 7 {
		t.Errorf("floor: %+v, %v", f, err)
	}
	var got raft.Log
	if err := s.Log.GetLog(2, &got); err != raft.ErrLogNotFound { // compared by == in replicateTo
		t.Errorf("entry 2: %v", err)
	}
}

// TestStartClosesWhatItWasGiven, when it fails.
func TestStartClosesWhatItWasGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := clustertest.NewNetwork(1, 0, 0)
		for _, test := range []struct {
			name string
			id   ServerID
		}{{"no incarnation", "a"}, {"no name", "/1"}, {"separator", "a@b/1"}} {
			listener, err := network.Host("a").Listen(raftPort)
			if err != nil {
				t.Fatal(err) // the one before is still open
			}
			store := clustertest.NewRaftDisk(1, 0).Open()
			closed := 0
			_, err = Start(context.Background(), Config{
				ID: test.id, FSM: &testFSM{}, Bodies: &fakeBodies{}, Stream: testStream{listener, network.Host("a")},
				Stores: Stores{Log: store, Stable: store, Snapshots: store, Close: func() error { closed++; return nil }},
				Logger: testLogger("a"),
			})
			if err == nil || closed != 1 {
				t.Errorf("%s: %v, closed %d times", test.name, err, closed)
			}
		}
		// A disk that fails while Raft starts is an error, not a panic.
		listener, err := network.Host("a").Listen(raftPort)
		if err != nil {
			t.Fatal(err)
		}
		store := clustertest.NewRaftDisk(1, 0).Open()
		store.Crash()
		if _, err := Start(context.Background(), Config{
			ID: "a/1", FSM: &testFSM{}, Bodies: &fakeBodies{}, Stream: testStream{listener, network.Host("a")},
			Stores: Stores{Log: store, Stable: store, Snapshots: store}, Logger: testLogger("a"),
		}); err == nil {
			t.Error("started on a dead disk")
		}
	})
}
