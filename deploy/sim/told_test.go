package sim

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/fsm"
)

// keepApart cuts a node off from the senders' host, until the world ends: the others
// bring the reports.
func (w *World) keepApart(node int) {
	name := w.names[max(0, node)]
	if leader := w.Leader(); node == whoLeads && leader != "" {
		name = leader
	}
	w.network.Cut(name, homeName)
}

// clear notes what is held when all is done, and has an operator remove it, so that
// nothing is left.
func (w *World) clear(ctx context.Context, t *testing.T) {
	t.Helper()
	for m := range w.nodes[w.names[0]].node.Member().View().Messages(zeroID) {
		if !w.rests(m) {
			continue
		}
		for i, r := range m.Recipients {
			if r.State != fsm.RecipientHeld {
				continue
			}
			err := w.ledger.Held(ledger.Held{
				Recipient: m.Envelope.Recipients[i].Path.Mailbox.String(), QueueID: m.ID.String(), Reason: r.Reason, At: time.Now(),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Do(ctx, fsm.Remove{ID: m.ID}); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); !w.empty(); time.Sleep(100 * time.Millisecond) {
		if !time.Now().Before(deadline) {
			t.Error("what was held is removed, and the queue is not empty")
			return
		}
	}
}

// judgeNotices fails the test where a sender was not told what he is to be told, or
// was told something else. One may be told twice where his report is marked as a
// possible duplicate, as for any other message.
func (s *story) judgeNotices() {
	s.t.Helper()
	n := s.ledger.CheckNotices(func(a ledger.Arrival, last bool) bool {
		m, ok := s.message(a.QueueID)
		return !last && ok && m.PossibleDuplicate
	})
	report, totals := s.ledger.Check(), s.member(s.names[0]).Totals()
	s.t.Logf("notices: due=%d told=%d untold=%d silent=%d undue=%d extra=%d bound=%d; held at the end: %d; reports: %d",
		n.Due, n.Told, n.Untold, n.Silent, n.Undue, n.Extra, n.Bound, report.Held, totals.Reports)
	for _, c := range n.Cases {
		s.t.Error(c)
	}
	for _, what := range s.home.strangers() {
		s.t.Error(what)
	}
	if totals.ReportsDropped > 0 {
		s.t.Errorf("%d reports were dropped", totals.ReportsDropped)
	}
	if n.Due == 0 || report.Held == 0 {
		s.t.Error("nobody was to be told, or nothing was held: nothing was shown")
	}
}
