package cluster

import (
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func idOf(n int) mail.QueueID {
	return mail.MintQueueID(uint64(n), [10]byte{})
}

// Two sessions propose at the same moment: each proposal must carry what was
// settled before it, whatever the other one carries.
//
// It holds this defect: settled ids travelled with one proposal alone, so that the
// client's next message overtook them and was merged with the one before it.
func TestRegressionSettledIDsTravelUntilTheyAreCommitted(t *testing.T) {
	var s settledSet
	for n := range settledPerCommand + 1 {
		s.add(idOf(n))
	}
	first, all := s.oldest()
	if len(first) != settledPerCommand || first[0] != idOf(0) || all {
		t.Fatalf("%d ids travel, the first %s, and they are said to be all: %v", len(first), first[0], all)
	}
	if second, _ := s.oldest(); !slices.Equal(first, second) {
		t.Errorf("a second proposal made meanwhile carries other ids")
	}
	s.committed(first)
	s.committed(first) // the same ids again
	left, all := s.oldest()
	if len(left) != 1 || left[0] != idOf(settledPerCommand) || !all {
		t.Errorf("%v left, want the one that did not travel", left)
	}
	s.committed(left)
	if !s.empty() {
		t.Error("ids left that were committed")
	}
}

func TestSettledIDsAreBounded(t *testing.T) {
	var s settledSet
	for n := range settledMax + 10 {
		s.add(idOf(n))
	}
	if got := len(s.waiting); got != settledMax {
		t.Fatalf("%d ids wait, want %d", got, settledMax)
	}
	if s.waiting[0] != idOf(10) {
		t.Errorf("the oldest is %s, want the tenth", s.waiting[0])
	}
}
