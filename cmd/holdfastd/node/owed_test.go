package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestOwed: an alarm stands where a message has owed its sender a report for long, from
// when this node saw that first, and ends with the report.
func TestOwed(t *testing.T) {
	view := fsm.New()
	apply := func(a fsm.Action) {
		t.Helper()
		if r, _ := view.Apply(view.Applied()+1, fsm.Command{Node: "n1", Action: a}); r.Verdict != fsm.Done {
			t.Fatalf("%T: %+v", a, r)
		}
	}
	apply(fsm.PutDomain{Domain: fsm.Domain{Name: "example.test", MX: true, Bounce: fsm.BounceAlways}})
	from, _ := mail.ParseReversePath("sender@example.net", false)
	to, _ := mail.ParseForwardPath("a@example.test", false)
	refuse := func(n byte) mail.QueueID {
		t.Helper()
		id := mail.MintQueueID(uint64(n)+1, [10]byte{n})
		apply(fsm.Accept{Envelope: mail.Envelope{From: from, Recipients: []mail.Recipient{{Path: to, Domain: "example.test"}}}, Body: mail.NewBody([]byte{n}).Ref(id)})
		apply(fsm.GrantLeases{Holder: "n1", Domain: "example.test", Messages: []mail.QueueID{id}})
		apply(fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(view.Applied()), Messages: []fsm.MessageOutcomes{{ID: id, Recipients: []fsm.RecipientOutcome{{
			Outcome: fsm.Failed, Tried: true, Reply: mail.Reply{Code: 550, Text: "no"},
		}}}}})
		return id
	}
	var all owed
	start := time.Now()
	after := func(d time.Duration) (cause string) {
		t.Helper()
		all.look(view, start.Add(d))
		for _, a := range all.alarms("sim", start.Add(d)) {
			if a.Name != "reports-owed" || a.Scope != "cluster sim" || a.Remedy == "" || !a.Since.Equal(start) {
				t.Errorf("%+v", a)
			}
			cause += a.Cause
		}
		return cause
	}
	if got := after(0); got != "" {
		t.Errorf("nothing is owed: %s", got)
	}
	first := refuse(1)
	after(0)
	second := refuse(2)
	if got := after(owedAlarmAfter - time.Second); got != "" {
		t.Errorf("too early: %s", got)
	}
	all.failed(first, errors.New("its content is nowhere"))
	all.failed(mail.QueueID{9}, errors.New("what is not owed"))
	if got := after(owedAlarmAfter); !strings.HasPrefix(got, "2 messages owe") || !strings.Contains(got, first.String()) || !strings.Contains(got, "its content is nowhere") {
		t.Errorf("%q", got)
	}
	reports := &reporter{failed: map[mail.QueueID]time.Time{first: start, second: start}}
	apply(fsm.Remove{ID: first})
	if reports.forget(view); len(reports.failed) != 1 || reports.failed[second].IsZero() {
		t.Errorf("remembered: %v", reports.failed)
	}
	if got := after(owedAlarmAfter); got != "" {
		t.Errorf("of what was removed: %s", got)
	}
	apply(fsm.Remove{ID: second})
	for n := byte(3); n < 240; n++ {
		refuse(n)
	}
	after(time.Hour)
	if len(all.since) != owedLooksMax || all.all != 237 {
		t.Errorf("%d of %d are remembered", len(all.since), all.all)
	}
}
