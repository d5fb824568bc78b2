package delivery

import (
	"fmt"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// outcomes collects what became of the recipients of one message in one
// attempt. Each recipient begins as deferred and not tried.
type outcomes struct {
	message    mail.QueueID
	recipients []mail.Recipient       // those to try
	list       []fsm.RecipientOutcome // parallel to recipients
	accepted   []bool                 // their RCPT got a 2yz
	relayed    bool                   // what the sender wants to be told is for us to tell
}

func newOutcomes(m Message) *outcomes {
	o := &outcomes{message: m.ID}
	for _, position := range m.Recipients {
		if position < 0 || position >= len(m.Envelope.Recipients) {
			continue
		}
		o.recipients = append(o.recipients, m.Envelope.Recipients[position])
		o.list = append(o.list, fsm.RecipientOutcome{Recipient: position, Outcome: fsm.Deferred})
	}
	o.accepted = make([]bool, len(o.list))
	return o
}

// judgeRecipients takes the replies to RCPT.
func (o *outcomes) judgeRecipients(replies []mail.Reply) {
	for i, r := range replies {
		switch {
		case r.Code == 0:
		case r.Positive():
			o.accepted[i] = true
		default:
			o.list[i].Outcome, o.list[i].Tried, o.list[i].Reply = refusalOfRecipient(r), true, r
		}
	}
}

// judgeAccepted gives all recipients that RCPT accepted the same outcome.
func (o *outcomes) judgeAccepted(outcome fsm.Outcome, reply mail.Reply) {
	for i, accepted := range o.accepted {
		if accepted {
			o.list[i].Outcome, o.list[i].Tried, o.list[i].Reply = outcome, true, reply
			o.list[i].Relayed = outcome == fsm.Delivered && o.relayed && o.recipients[i].Notify&mail.NotifySuccess != 0
		}
	}
}

// all gives every recipient the same outcome.
func (o *outcomes) all(outcome fsm.Outcome, reply mail.Reply) result {
	for i := range o.list {
		o.list[i].Outcome, o.list[i].Tried, o.list[i].Reply = outcome, true, reply
	}
	return o.finish(false)
}

// untried makes every recipient deferred and not tried.
func (o *outcomes) untried(ours bool) result {
	for i := range o.list {
		o.list[i] = fsm.RecipientOutcome{Recipient: o.list[i].Recipient, Outcome: fsm.Deferred}
	}
	r := o.finish(false)
	r.tried, r.ours = false, ours
	return r
}

// unreadable defers every recipient of a message whose content this node could
// not read. It counts as tried, so that the message waits and does not stand
// before all others while its content is fetched.
func (o *outcomes) unreadable() result {
	r := o.all(fsm.Deferred, replyMissing)
	r.ours = true
	return r
}

func (o *outcomes) finish(answered bool) result {
	return result{
		outcomes: fsm.MessageOutcomes{ID: o.message, Recipients: o.list},
		tried:    true, answered: answered,
	}
}

// count adds the outcomes to the counters.
func (s *Stats) count(o fsm.MessageOutcomes) {
	for _, r := range o.Recipients {
		switch r.Outcome {
		case fsm.Delivered:
			s.Delivered.Add(1)
		case fsm.InDoubt:
			s.InDoubt.Add(1)
		case fsm.Deferred:
			s.Deferred.Add(1)
		case fsm.Failed:
			s.Failed.Add(1)
		}
	}
}

// String sums the outcomes up for a log line.
func (o *outcomes) String() string {
	var delivered, deferred, failed, doubt int
	for _, r := range o.list {
		switch r.Outcome {
		case fsm.Delivered:
			delivered++
		case fsm.InDoubt:
			doubt++
		case fsm.Deferred:
			deferred++
		case fsm.Failed:
			failed++
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		name string
	}{{delivered, "delivered"}, {failed, "failed"}, {deferred, "deferred"}, {doubt, "in doubt"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.name))
		}
	}
	return strings.Join(parts, ", ")
}
