package fsm_test

import (
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// putOff has the next hop of a domain put off half of what is due, four times.
func putOff(s *fsm.State, d mail.Domain) {
	apply := func(a fsm.Action) fsm.Result {
		r, _ := s.Apply(s.Applied()+1, fsm.Command{Action: a})
		return r
	}
	apply(fsm.ResumeDomain{Name: d})
	apply(fsm.FlushDomain{Name: d})
	due := slices.Collect(s.Due(d))
	for range 4 {
		r := apply(fsm.GrantLeases{Holder: "n1", Domain: d, Messages: due[:(len(due)+1)/2]})
		report := fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied())}
		for _, id := range r.Messages {
			m, _ := s.Message(id)
			o := fsm.MessageOutcomes{ID: id}
			for _, k := range m.Queued(d) {
				o.Recipients = append(o.Recipients, fsm.RecipientOutcome{Recipient: k, Outcome: fsm.Deferred, Tried: true, Reply: mail.Reply{Code: 451}})
			}
			report.Messages = append(report.Messages, o)
		}
		apply(report)
		apply(fsm.FlushDomain{Name: d})
		for range 10 { // an entry ends a few waits only
			apply(fsm.Settle{})
		}
	}
}

// What a plan sees of due mail, from either end and from any entry on, is what Due says
// and what the messages themselves say.
func TestDueFromBothEnds(t *testing.T) {
	seen, slow := 0, 0
	for seed := range uint64(10) {
		s := fsm.New()
		if err := fsmtest.NewHistory(s, nil, newSeeded(seed)).Run(300); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, d := range s.Domains() {
			putOff(s, d.Name)
		}
		for _, d := range s.Domains() {
			var ids []mail.QueueID
			all := slices.Collect(s.DueFrom(d.Name, 0))
			for i, m := range all {
				ids = append(ids, m.ID)
				is, _ := s.Message(m.ID)
				at := slices.IndexFunc(is.Parts, func(p fsm.Part) bool { return p.Domain == d.Name })
				if is.Entry != m.Entry || is.Parts[at].Slow() != m.Slow {
					t.Fatalf("seed %d: %+v is due, and its message says %+v", seed, m, is)
				}
				if m.Slow {
					slow++
				}
				for _, from := range []fsm.Index{m.Entry, m.Entry + 1} {
					want := all[i+int(from-m.Entry):]
					if got := slices.Collect(s.DueFrom(d.Name, from)); !slices.Equal(got, want) {
						t.Fatalf("seed %d: due from %d on is %v, want %v", seed, from, got, want)
					}
				}
			}
			if due := slices.Collect(s.Due(d.Name)); !slices.Equal(due, ids) {
				t.Fatalf("seed %d: due are %v, seen are %v", seed, due, ids)
			}
			newest := slices.Collect(s.DueNewest(d.Name))
			slices.Reverse(newest)
			if !slices.Equal(newest, all) {
				t.Fatalf("seed %d: due are %v, from the newest on %v", seed, all, newest)
			}
			seen += len(all)
		}
	}
	if seen == 0 || slow == 0 {
		t.Errorf("%d due messages, %d of them slow: that proves nothing", seen, slow)
	}
	for range fsm.New().DueFrom("a.test", 0) {
		t.Error("something is due for a domain that is none")
	}
	for range fsm.New().DueNewest("a.test") {
		t.Error("something is due for a domain that is none")
	}
}
