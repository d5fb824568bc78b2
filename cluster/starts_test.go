package cluster

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/fsm"
)

// TestStarts: what stands in the log counts, committed or not, and nothing is
// said before all of it has been read.
func TestStarts(t *testing.T) {
	s := NewStarts()
	for _, a := range []fsm.Action{
		fsm.RecordStart{Server: "a/1", Number: 3}, fsm.RecordStart{Server: "a/1", Number: 2}, fsm.Settle{}, fsm.RecordStart{Server: "b/1", Number: 1},
	} {
		s.observe(encoded(t, fsm.Command{Node: "a", Action: a}))
	}
	s.observe([]byte("from a newer version"))
	if n, ok := s.Known("a/1"); ok {
		t.Errorf("%d is known before the log has been read", n)
	}
	applied := map[fsm.ServerID]uint64{"a/1": 2, "b/1": 5}
	s.complete(func(id fsm.ServerID) uint64 { return applied[id] })
	for id, want := range map[consensus.ServerID]uint64{"a/1": 3, "b/1": 5, "c/1": 0} {
		if n, ok := s.Known(id); n != want || !ok {
			t.Errorf("%s: %d, %v, want %d", id, n, ok, want)
		}
	}
	select {
	case <-s.outdated:
		t.Error("outdated")
	default:
	}
	first := errors.New("the first")
	s.ReportOutdated(first)
	s.ReportOutdated(errors.New("the second"))
	<-s.outdated
	if err := s.outdatedError(); !errors.Is(err, first) || !errors.Is(err, consensus.ErrOutdated) {
		t.Errorf("%v", err)
	}
}
