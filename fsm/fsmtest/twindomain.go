package fsmtest

import (
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A twinDomain is a relay domain of a twin.
type twinDomain struct {
	config  fsm.Domain
	hop     fsm.NextHop
	number  int                   // how many were made before it
	ending  fsm.Index             // retry waits end from this entry on; 0 where they do not
	known   map[string]fsm.Millis // local parts that were delivered to, and the day
	policy  *fsm.STSPolicy
	warned  fsm.Index // up to this entry, messages were looked at that wait for long
	refused []string  // local parts that were refused while it was guarded
}

func (w *Twin) putDomain(c fsm.Domain) fsm.Result {
	if ways := len(c.Targets) > 0; c.MX && ways || (c.MX || ways) == c.OnDemand || isOutbound(c.Name) {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	d := w.domains[c.Name]
	switch {
	case d == nil:
		w.made++
		w.domains[c.Name] = &twinDomain{config: c, hop: fsm.NextHop{State: fsm.NextHopUp, Since: w.now}, number: w.made, known: make(map[string]fsm.Millis)}
	case d.config.MX != c.MX || d.config.OnDemand != c.OnDemand || !slices.Equal(d.config.Targets, c.Targets):
		d.hop.Failed, d.hop.Barred, d.hop.Detail = nil, nil, ""
		if d.hop.Guarded || d.hop.Stopped {
			d.guard(true)
		}
		w.setHop(d, fsm.NextHopUp)
	}
	w.domains[c.Name].config = c
	if c.DelayWarning == 0 {
		w.domains[c.Name].warned = 0
	}
	if c.TLS.Mode != fsm.TLSMTASTS {
		w.domains[c.Name].policy = nil
	}
	return fsm.Result{Verdict: fsm.Done}
}

func (w *Twin) recordPolicy(r fsm.RecordPolicy) fsm.Result {
	d := w.domains[r.Domain]
	switch {
	case d == nil:
		return fsm.Result{Verdict: fsm.NotFound}
	case d.config.TLS.Mode != fsm.TLSMTASTS:
		return fsm.Result{Verdict: fsm.Refused}
	case len(r.Policy.ID) > 32 || len(r.Policy.Text) > 8192:
		return fsm.Result{Verdict: fsm.Invalid}
	}
	d.policy = &r.Policy
	return fsm.Result{Verdict: fsm.Done}
}

func (w *Twin) removeDomain(n mail.Domain) fsm.Result {
	if w.domains[n] == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	if c := w.Counts(n); c.Queued+c.Held+c.Leased > 0 {
		return fsm.Result{Verdict: fsm.Refused}
	}
	delete(w.domains, n)
	return fsm.Result{Verdict: fsm.Done}
}

func (w *Twin) setHop(d *twinDomain, to fsm.NextHopState) {
	if d.hop.State != to {
		d.hop.State, d.hop.Since = to, w.now
	}
}

func (w *Twin) nextHop(r fsm.ReportNextHop) fsm.Result {
	if r.Node == "" || r.Up && r.Refused {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	d := w.domains[r.Domain]
	if d == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	d.hop.Detail = r.Detail
	if r.Up {
		d.hop.Failed, d.hop.Barred = nil, nil
		if d.hop.State == fsm.NextHopDown || d.hop.State == fsm.NextHopRefusing {
			d.ending = 1
			if d.config.ConnectionsMax > 0 && !d.hop.Stopped {
				d.guard(true)
			}
		}
		w.setHop(d, fsm.NextHopUp)
		return fsm.Result{Verdict: fsm.Done}
	}
	// What the node saw last is what counts of it.
	saw := map[fsm.NodeName]bool{r.Node: r.Refused}
	for _, n := range d.hop.Failed {
		if n != r.Node {
			saw[n] = false
		}
	}
	for _, n := range d.hop.Barred {
		if n != r.Node {
			saw[n] = true
		}
	}
	d.hop.Failed, d.hop.Barred = nil, nil
	for _, n := range slices.Sorted(maps.Keys(saw)) {
		if saw[n] {
			d.hop.Barred = append(d.hop.Barred, n)
		} else {
			d.hop.Failed = append(d.hop.Failed, n)
		}
	}
	switch enough := len(saw) >= 2 || len(saw) >= w.settings.Voters; {
	case !enough:
		w.setHop(d, fsm.NextHopSuspect)
	case d.hop.Barred != nil:
		w.setHop(d, fsm.NextHopRefusing)
	default:
		w.setHop(d, fsm.NextHopDown)
	}
	return fsm.Result{Verdict: fsm.Done}
}

// endWaits makes queued messages due that wait for a retry, of the domains where
// such waits end, as many as one entry may look at.
func (w *Twin) endWaits() {
	looked := 0
	for _, n := range slices.SortedFunc(maps.Keys(w.domains), func(a, b mail.Domain) int { return w.domains[a].number - w.domains[b].number }) {
		d := w.domains[n]
		if d.ending == 0 {
			continue
		}
		for _, m := range w.messages {
			p := m.parts[n]
			waits := p != nil && p.lease == 0 && max(p.retryAt, p.doubt) > w.now && m.has(n, fsm.RecipientQueued) > 0
			if !waits || m.entry < d.ending {
				continue
			}
			p.retryAt = min(p.retryAt, w.now)
			d.ending = m.entry + 1
			if looked++; looked == w.settings.WaitsPerEntry {
				return
			}
		}
		d.ending = 0
	}
}

// expireOld holds what has outlived its domain's lifetime. What one Tick does at the
// most is more than a history has.
func (w *Twin) expireOld() {
	for _, m := range w.messages {
		for n, p := range m.parts {
			life := w.lifetime(n)
			born := max(m.at, p.released)
			if life == 0 || born+life > w.now || p.lease != 0 || p.doubt > w.now || m.has(n, fsm.RecipientQueued) == 0 {
				continue
			}
			if isOutbound(n) {
				m.status[0].State = fsm.RecipientFailed
				w.counted.ReportsDropped++
				continue
			}
			w.counted.Expired++
			for i, r := range m.envelope.Recipients {
				if r.Domain == n && m.status[i].State == fsm.RecipientQueued {
					m.status[i].State, m.status[i].Reason = fsm.RecipientHeld, "not delivered within its lifetime"
					m.status[i].Report = w.owed(fsm.ReportExpired, m, i)
				}
			}
		}
	}
}

func (w *Twin) lifetime(n mail.Domain) fsm.Millis {
	if w.domains[n] == nil {
		return 0
	}
	return w.domains[n].config.Schedule.Lifetime
}

const twinDay = 24 * 3_600_000

// guard begins to watch the domain, or ends it.
func (d *twinDomain) guard(is bool) {
	d.refused = nil
	d.hop.Guarded, d.hop.Stopped, d.hop.StoppedAt, d.hop.Refused = is, false, 0, 0
}

// of returns the domain of a recipient, nil if it is gone, and the recipient's name.
func (w *Twin) of(m *twinMessage, recipient int) (*twinDomain, string) {
	r := m.envelope.Recipients[recipient]
	d := w.domains[r.Domain]
	if d == nil || d.number != m.parts[r.Domain].number {
		return nil, ""
	}
	return d, strings.ToLower(r.Path.Local)
}

func (w *Twin) took(m *twinMessage, recipient int, current bool) {
	d, name := w.of(m, recipient)
	if d == nil || d.config.ConnectionsMax == 0 {
		return
	}
	d.known[name] = w.now / twinDay
	if current && d.hop.Guarded {
		d.guard(false)
	}
}

func (w *Twin) refused(m *twinMessage, recipient int) {
	d, name := w.of(m, recipient)
	if d == nil || !d.hop.Guarded {
		return
	}
	history := false
	for local := range d.known {
		history = history || w.knows(d, local)
	}
	if history && !w.knows(d, name) || !history && slices.Contains(d.refused, name) {
		return
	}
	d.refused = append(d.refused, name)
	if d.hop.Refused = len(d.refused); d.hop.Refused == 3 {
		d.hop.Guarded, d.hop.Stopped, d.hop.StoppedAt = false, true, w.now
	}
}

func (w *Twin) knows(d *twinDomain, local string) bool {
	day, ok := d.known[local]
	return ok && w.now/twinDay-day <= 60
}

func (w *Twin) resume(n mail.Domain) fsm.Result {
	d := w.domains[n]
	if d == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	d.guard(false)
	return fsm.Result{Verdict: fsm.Done}
}

// grantMax is how many messages of a domain may be leased more.
func (w *Twin) grantMax(n mail.Domain) int {
	d := w.domains[n]
	switch {
	case d.hop.Stopped:
		return 0
	case d.hop.Guarded:
		return 3 - d.hop.Refused - w.Counts(n).Leased
	}
	return len(w.messages)
}
