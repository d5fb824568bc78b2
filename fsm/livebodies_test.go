package fsm_test

import (
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestLiveBodies: the walk over the bodies finds those of the messages that are
// not finished, in the order of their entries, from any entry on.
func TestLiveBodies(t *testing.T) {
	walked := 0
	for seed := range uint64(20) {
		s := fsm.New()
		h := fsmtest.NewHistory(s, nil, newSeeded(seed))
		if err := h.Run(300); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		type live struct {
			entry fsm.Index
			ref   mail.BodyRef
		}
		var want []live
		for m := range s.Messages(mail.QueueID{}) {
			if !m.Finished {
				want = append(want, live{m.Entry, m.Body})
			}
		}
		slices.SortFunc(want, func(a, b live) int { return int(a.entry) - int(b.entry) })
		for from := range len(want) + 1 {
			begin := s.Applied() + 1
			if from < len(want) {
				begin = want[from].entry
			}
			var got []live
			for entry, ref := range s.LiveBodies(begin) {
				got = append(got, live{entry, ref})
			}
			if !slices.Equal(got, want[from:]) {
				t.Fatalf("seed %d, from entry %d: %v, want %v", seed, begin, got, want[from:])
			}
			walked += len(got)
		}
	}
	if walked == 0 {
		t.Error("no history left anything queued")
	}
}

func BenchmarkLiveBodies(b *testing.B) {
	s := filled(100_000)
	b.ResetTimer()
	for range b.N {
		for range s.LiveBodies(0) {
		}
	}
}
