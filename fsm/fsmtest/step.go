package fsmtest

import (
	"fmt"
	"slices"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Step reports what one command did to the queue that no command may do. It
// knows the State before and after and nothing else, so it needs no twin.
func Step(before *fsm.State, i fsm.Index, c fsm.Command, r fsm.Result, effects []fsm.Effect, after *fsm.State) error {
	if err := after.Check(); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if r.Verdict < fsm.Done || r.Verdict > fsm.Invalid {
		return fmt.Errorf("verdict %d", r.Verdict)
	}
	for was := range before.Messages(mail.QueueID{}) {
		is, ok := after.Message(was.ID)
		if !ok {
			if !was.Ended || after.Now()-was.EndedAt < after.Settings().RecordLife {
				return fmt.Errorf("%s is forgotten before its time", was.ID)
			}
			continue
		}
		if err := stepMessage(was, is, i, c, effects, after); err != nil {
			return fmt.Errorf("message %s: %w", was.ID, err)
		}
	}
	for server, number := range before.Starts() {
		if after.Start(server) < number {
			return fmt.Errorf("%s has started %d times, and then %d", server, number, after.Start(server))
		}
	}
	switch a := c.Action.(type) {
	case fsm.Accept:
		return stepAccept(before, c, a, r, after)
	case fsm.GrantLeases:
		return stepGrant(before, i, a, r)
	}
	return nil
}

func stepMessage(was, is fsm.Message, i fsm.Index, c fsm.Command, effects []fsm.Effect, after *fsm.State) error {
	if was.Settled && !is.Settled || was.PossibleDuplicate && !is.PossibleDuplicate {
		return fmt.Errorf("a mark is gone")
	}
	for k, st := range was.Recipients {
		now := is.Recipients[k].State
		switch {
		case st.State == now:
			continue
		case st.State != fsm.RecipientQueued && st.State != fsm.RecipientHeld:
			return fmt.Errorf("recipient %d leaves its end: %s to %s", k, st.State, now)
		}
		// Only a report may end like this: it is nobody's mail.
		dropped := now == fsm.RecipientFailed && isOutbound(was.Envelope.Recipients[k].Domain)
		allowed := false
		switch a := c.Action.(type) {
		case fsm.Hold:
			allowed = st.State == fsm.RecipientQueued && now == fsm.RecipientHeld
		case fsm.Release:
			allowed = st.State == fsm.RecipientHeld && now == fsm.RecipientQueued
		case fsm.Remove:
			allowed = now == fsm.RecipientRemoved
		case fsm.Tick:
			allowed = dropped || st.State == fsm.RecipientQueued && now == fsm.RecipientHeld && is.Recipients[k].Reason == "not delivered within its lifetime"
		case fsm.RecordOutcomes:
			allowed = dropped || now == fsm.RecipientDelivered || st.State == fsm.RecipientQueued && now == fsm.RecipientHeld
		case fsm.IssueReport:
			// It fails in the entry that queues the report of that.
			report, queued := after.Message(a.Report.Body.ID)
			allowed = st.Report == fsm.ReportFailure && a.Message == was.ID && now == fsm.RecipientFailed &&
				queued && report.Entry == i && !report.Finished
		}
		if !allowed { // I1: nothing is silently gone
			return fmt.Errorf("%T takes recipient %d from %s to %s", c.Action, k, st.State, now)
		}
	}
	for k, p := range was.Parts {
		now := is.Parts[k]
		switch c.Action.(type) {
		case fsm.RecordOutcomes, fsm.ExpireLeases:
		default: // only these end a lease record
			if p.Lease != 0 && now.Lease != p.Lease {
				return fmt.Errorf("%T ends lease %d", c.Action, p.Lease)
			}
		}
		if now.Lease != p.Lease && now.Lease != 0 && now.Lease != fsm.Token(i) {
			return fmt.Errorf("entry %d gives lease %d", i, now.Lease)
		}
		if now.Begun && !p.Begun && p.Queued == 0 { // I7
			return fmt.Errorf("begun with nothing queued")
		}
		if p.Begun && now.Lease == 0 && !is.PossibleDuplicate {
			if _, expired := c.Action.(fsm.ExpireLeases); expired {
				return fmt.Errorf("lease %d ends begun and unmarked", p.Lease)
			}
		}
	}
	if is.Finished && slices.ContainsFunc(is.Recipients, func(r fsm.RecipientStatus) bool { return r.Report != 0 }) {
		return fmt.Errorf("finished, and owes a report")
	}
	if finished := slices.Contains(effects, fsm.Effect(fsm.Finished{ID: is.ID})); finished != (is.Finished && !was.Finished) {
		return fmt.Errorf("effect finished is %v", finished)
	}
	return nil
}

func stepAccept(before *fsm.State, c fsm.Command, a fsm.Accept, r fsm.Result, after *fsm.State) error {
	known := before.Known(a.Body.ID)
	switch r.Verdict {
	case fsm.Done:
		m, ok := after.Message(r.ID)
		if !ok || r.ID != a.Body.ID || m.ID != r.ID {
			return fmt.Errorf("accepted %s is not there", r.ID)
		}
	case fsm.Repeat:
		m, ok := after.Message(r.ID)
		if !ok || m.ID != r.ID || !after.Known(a.Body.ID) {
			return fmt.Errorf("%s repeats %s, which is not there", a.Body.ID, r.ID)
		}
		if known {
			return nil // as the first time
		}
		if was, _ := before.Message(r.ID); was.Settled || slices.Contains(c.Settled, r.ID) {
			return fmt.Errorf("%s repeats %s, whose 250 was read", a.Body.ID, r.ID)
		}
		for _, st := range m.Recipients {
			if st.State == fsm.RecipientRemoved || st.State == fsm.RecipientFailed {
				return fmt.Errorf("%s repeats %s, which is %s: a 250 for nothing", a.Body.ID, r.ID, st.State)
			}
		}
		if Print(m.Envelope, m.Body) != Print(a.Envelope, a.Body) {
			return fmt.Errorf("%s repeats %s, which is another message", a.Body.ID, r.ID)
		}
	default:
		if known || after.Known(a.Body.ID) {
			return fmt.Errorf("%s, known before: %v, is answered %s", a.Body.ID, known, r.Verdict)
		}
	}
	return nil
}

// stepGrant holds I7 and I8: granted only where something is queued, no lease
// record stands and no wait runs.
func stepGrant(before *fsm.State, i fsm.Index, g fsm.GrantLeases, r fsm.Result) error {
	for _, id := range r.Messages {
		m, ok := before.Message(id)
		if !ok || m.ID != id {
			return fmt.Errorf("%s is granted and not there", id)
		}
		for _, p := range m.Parts {
			if p.Domain != g.Domain {
				continue
			}
			if p.Queued == 0 || p.Lease != 0 || p.RetryAt > before.Now() || p.DoubtUntil > before.Now() {
				return fmt.Errorf("%s is granted by entry %d at %d as it stands: %+v", id, i, before.Now(), p)
			}
		}
	}
	return nil
}
