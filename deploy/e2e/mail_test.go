//go:build e2e

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// passable are the shapes that Postfix hands on and keeps.
func passable(s letter.Shape) bool {
	return slices.Contains(mailserver.Postfix.HandsOn(), s) && slices.Contains(mailserver.Postfix.Keeps(), s)
}

// A sentLog turns the log of the sending Postfix into the ledger's outcomes.
type sentLog struct {
	p    *postfix
	book *ledger.Ledger
	seen int // lines
}

// read takes the new lines in and returns their deliveries.
func (s *sentLog) read(t *testing.T) (all []mailserver.Delivery) {
	t.Helper()
	lines := s.p.lines()
	fresh := lines[s.seen:max(s.seen, len(lines)-1)] // the last one may be incomplete
	s.seen += len(fresh)
	for i, line := range fresh {
		d, ok := mailserver.Postfix.ParseDelivery(line)
		if !ok || d.Recipient == "" {
			continue
		}
		all = append(all, d)
		id, _ := ledger.MarkerOf(d.Recipient)
		o := ledger.Outcome{ID: id, Attempt: s.seen + i, Recipients: []string{d.Recipient}, Reply: d.Reply, At: time.Now()}
		switch d.Status {
		case mailserver.Sent:
			o.Result = ledger.OK
			o.QueueID = mailserver.QueueIDOf(d.Reply)
		case mailserver.Bounced:
			o.Result = ledger.Fail
		default:
			o.Result = ledger.Info // Postfix will try again
		}
		if err := s.book.Outcome(o); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// A maildir records what a primary kept.
type maildir struct {
	mailserver.Maildir
	book *ledger.Ledger
	kept []mailserver.Kept
}

func (m *maildir) read(t *testing.T) {
	t.Helper()
	fresh, err := m.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range fresh {
		if err := m.book.Arrival(k.Arrival); err != nil {
			t.Fatal(err)
		}
	}
	m.kept = append(m.kept, fresh...)
}
