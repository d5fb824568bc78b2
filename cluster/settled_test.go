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
func TestSettledIDsTravelUntilTheyAreCommitted(t *testing.T) {
	var s settledSet
	for n := range settledPerCommand + 1 {
		s.add(idOf(n))
	}
	first, second := s.newest(), s.newest()
	if len(first) != settledPerCommand || first[len(first)-1] != idOf(settledPerCommand) {
		t.Fatalf("%d ids travel, the last %s; want the newest %d", len(first), first[len(first)-1], settledPerCommand)
	}
	if !slices.Equal(first, second) {
		t.Errorf("a second proposal made meanwhile carries other ids")
	}
	s.committed(first)
	if left := s.newest(); len(left) != 1 || left[0] != idOf(0) {
		t.Errorf("%v left, want the one that did not travel", left)
	}
	s.committed(second) // the same ids again
	s.committed(s.newest())
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
