package clustertest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestCrashFallsBeforeOrBehindTheChange: over many crashes in the middle of a
// write, all entries of it are there afterwards or none, both happen, and an
// answer of success means that they are there.
func TestCrashFallsBeforeOrBehindTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := make(map[bool]int)
		for seed := range uint64(200) {
			d := NewRaftDisk(seed, 10*time.Millisecond)
			s := d.Open()
			go func() {
				time.Sleep(time.Duration(seed%10) * time.Millisecond)
				s.Crash()
			}()
			err := s.StoreLogs([]*raft.Log{{Index: 1}, {Index: 2}})
			_, one := d.Entry(1)
			_, two := d.Entry(2)
			if one != two || err == nil && !one {
				t.Fatalf("seed %d: entries %v, %v, answer %v", seed, one, two, err)
			}
			if err != nil {
				there[one]++
			}
			time.Sleep(time.Second)
			if err := s.SetUint64([]byte("k"), 1); !errors.Is(err, ErrKilled) || d.Number("k") != 0 {
				t.Fatalf("a dead process wrote: %v", err)
			}
			if got, err := d.Open().LastIndex(); err != nil || (got == 2) != one {
				t.Fatalf("the next process finds %d, %v", got, err)
			}
		}
		if there[true] == 0 || there[false] == 0 {
			t.Errorf("%v", there)
		}
	})
}

func TestRaftStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewRaftDisk(1, 0).Open()
		// raft.InmemStore gets this one wrong.
		if err := s.DeleteRange(0, 0); err != nil {
			t.Error(err)
		}
		if last, _ := s.LastIndex(); last != 0 {
			t.Errorf("last index %d of an empty log", last)
		}
		var l raft.Log
		if err := s.GetLog(1, &l); err != raft.ErrLogNotFound {
			t.Errorf("no entry: %v", err)
		}
		for i := uint64(5); i < 10; i++ {
			if err := s.StoreLog(&raft.Log{Index: i, Term: i}); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(s.DeleteRange(5, 6), s.DeleteRange(9, 20)); err != nil {
			t.Error(err)
		}
		first, _ := s.FirstIndex()
		last, _ := s.LastIndex()
		if first != 7 || last != 8 {
			t.Errorf("log from %d to %d", first, last)
		}
		s.FailNext(1)
		if err := s.StoreLog(&raft.Log{Index: 9}); !errors.Is(err, ErrDisk) {
			t.Errorf("injected: %v", err)
		}
		s.Block()
		done := make(chan error)
		go func() { done <- s.StoreLog(&raft.Log{Index: 9}) }()
		select {
		case <-done:
			t.Error("not blocked")
		case <-time.After(time.Hour):
		}
		s.Unblock()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSnapshots: newest first, two kept, none before its sink is closed.
func TestSnapshots(t *testing.T) {
	s := NewRaftDisk(1, 0).Open()
	for _, index := range []uint64{10, 20, 30} {
		sink, err := s.Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write([]byte("state")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Open(sink.ID()); err == nil {
			t.Error("opened before it was closed")
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		if index == 20 {
			cancelled, _ := s.Create(1, 25, 1, raft.Configuration{}, 1, nil)
			if err := errors.Join(cancelled.Cancel(), cancelled.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	metas, err := s.List()
	if err != nil || len(metas) != 2 || metas[0].Index != 30 || metas[1].Index != 20 || metas[0].Size != 5 {
		t.Errorf("%v, %v", metas, err)
	}
}
