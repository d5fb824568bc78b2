package fsmtest

import (
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func isOutbound(n mail.Domain) bool { return strings.Contains(string(n), "@") }

// owed is what a sender is to be told of a recipient, if he wants to know and the
// domain lets him.
func (w *Twin) owed(k fsm.ReportKind, m *twinMessage, recipient int) fsm.ReportKind {
	r := m.envelope.Recipients[recipient]
	d := w.domains[r.Domain]
	if d == nil || d.number != m.parts[r.Domain].number || d.config.Bounce != fsm.BounceAlways || m.envelope.From.IsNull() {
		return 0
	}
	wants := map[fsm.ReportKind]mail.Notify{
		fsm.ReportFailure: mail.NotifyFailure, fsm.ReportExpired: mail.NotifyFailure,
		fsm.ReportDelay: mail.NotifyDelay, fsm.ReportRelayed: mail.NotifySuccess,
	}[k]
	if r.Notify == 0 && wants == mail.NotifyFailure || r.Notify&mail.NotifyNever == 0 && r.Notify&wants != 0 {
		return k
	}
	return 0
}

func (w *Twin) issue(i fsm.Index, node fsm.NodeName, a fsm.IssueReport) fsm.Result {
	id := a.Report.Body.ID
	if m := w.own(id); m != nil && !id.IsZero() {
		return fsm.Result{Verdict: fsm.Done, ID: id}
	}
	if a.Kind == 0 || a.Kind > fsm.ReportRelayed || len(a.Recipients) == 0 {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	m := w.own(a.Message)
	if m == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	for _, r := range a.Recipients {
		if r >= len(m.status) || m.status[r].Report != a.Kind {
			return fsm.Result{Verdict: fsm.Refused}
		}
	}
	if !id.IsZero() {
		to := a.Report.Envelope.Recipients[0]
		host := mail.Domain(to.Path.Host)
		want := host
		if w.domains[host] == nil {
			want = fsm.OutboundDomain(host)
		}
		if to.Domain != want {
			return fsm.Result{Verdict: fsm.Refused}
		}
		d := w.domains[want]
		if d == nil {
			w.made++
			d = &twinDomain{
				config: fsm.Domain{Name: want, MX: true, Schedule: fsm.Schedule{RetryMin: 300_000, RetryMax: 4 * 3_600_000, Lifetime: 5 * twinDay}},
				hop:    fsm.NextHop{State: fsm.NextHopUp, Since: w.now}, number: w.made, known: make(map[string]fsm.Millis),
			}
			w.domains[want] = d
		}
		w.messages = append(w.messages, &twinMessage{
			entry: i, envelope: a.Report.Envelope, body: a.Report.Body, node: node, at: w.now, settled: true,
			status: []fsm.RecipientStatus{{State: fsm.RecipientQueued}},
			parts:  map[mail.Domain]*twinPart{want: {number: d.number}},
		})
		w.counted.Reports++
	}
	for _, r := range a.Recipients {
		st := &m.status[r]
		st.Report = 0
		switch {
		case a.Kind == fsm.ReportFailure && !id.IsZero():
			st.State, st.Reason = fsm.RecipientFailed, ""
			w.counted.Failed++
			m.print = ""
		case a.Kind == fsm.ReportExpired && !id.IsZero():
			st.Reason += "; the sender was told"
		case a.Kind == fsm.ReportFailure || a.Kind == fsm.ReportExpired:
			st.Reason += "; no report: " + a.Reason
		}
	}
	return fsm.Result{Verdict: fsm.Done, ID: id}
}

// warn looks at each message once for each domain that warns.
func (w *Twin) warn() {
	for n, d := range w.domains {
		after := d.config.DelayWarning
		for _, m := range w.messages {
			if after == 0 || m.entry <= d.warned || m.at+after > w.now {
				continue
			}
			d.warned = m.entry
			for i, r := range m.envelope.Recipients {
				if r.Domain != n || m.status[i].State != fsm.RecipientQueued {
					continue
				}
				if k := w.owed(fsm.ReportDelay, m, i); k != 0 {
					m.status[i].Report = k
				}
			}
		}
	}
}

func (w *Twin) endOutbound() {
	for n := range w.domains {
		if c := w.Counts(n); isOutbound(n) && c.Queued+c.Held+c.Leased == 0 {
			delete(w.domains, n)
		}
	}
}
