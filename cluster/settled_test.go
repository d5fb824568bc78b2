package cluster

import (
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func idOf(n int) mail.QueueID {
	return mail.MintQueueID(uint64(n), [10]byte{})
}

func TestSettledIDsAreGivenBackAfterAFailedProposal(t *testing.T) {
	var s settledSet
	for n := range settledPerCommand + 1 {
		s.add(idOf(n))
	}
	taken := s.take()
	if len(taken) != settledPerCommand {
		t.Fatalf("took %d ids, want %d", len(taken), settledPerCommand)
	}
	s.giveBack(taken)
	seen := map[mail.QueueID]bool{}
	for !s.empty() {
		for _, id := range s.take() {
			seen[id] = true
		}
	}
	if len(seen) != settledPerCommand+1 {
		t.Errorf("%d ids left, want %d", len(seen), settledPerCommand+1)
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
