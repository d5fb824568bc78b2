package fsmtest

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Twin is the queue as its description reads, without a thought for speed.
type Twin struct {
	now      fsm.Millis
	settings fsm.Settings
	messages []*twinMessage // in the order in which they were accepted
	domains  map[mail.Domain]*twinDomain
	made     int // domains, ever
	starts   map[fsm.ServerID][]uint64
	counted  fsm.Totals // the counters only
}

type twinMessage struct {
	entry    fsm.Index
	envelope mail.Envelope
	body     mail.BodyRef
	node     fsm.NodeName
	at       fsm.Millis
	settled  bool
	doubtful bool
	print    string // "" once it was dropped
	aliases  []mail.QueueID
	status   []fsm.RecipientStatus
	parts    map[mail.Domain]*twinPart
	ended    bool
	endedAt  fsm.Millis
}

type twinPart struct {
	number   int // of the domain
	lease    fsm.Token
	holder   fsm.NodeName
	renewal  fsm.Index
	begun    bool
	retryAt  fsm.Millis
	doubt    fsm.Millis
	doubted  fsm.Token
	released fsm.Millis
	attempts int
}

// NewTwin returns an empty queue.
func NewTwin() *Twin {
	return &Twin{settings: fsm.DefaultSettings(), domains: make(map[mail.Domain]*twinDomain), starts: make(map[fsm.ServerID][]uint64)}
}

// Apply does what fsm.State.Apply must do. The result has no text.
func (w *Twin) Apply(i fsm.Index, c fsm.Command) fsm.Result {
	for _, id := range c.Settled {
		if m := w.find(id); m != nil && !m.settled {
			m.settled = true
			m.print = ""
		}
	}
	r := w.act(i, c)
	if tick, is := c.Action.(fsm.Tick); is && tick.Elapsed >= 0 {
		w.expireOld()
		w.warn()
		w.endOutbound()
	}
	w.endWaits()
	for _, m := range w.messages {
		if !m.ended && !m.live() && !m.leased() {
			m.ended, m.endedAt = true, w.now
		}
	}
	return r
}

func (w *Twin) act(i fsm.Index, c fsm.Command) fsm.Result {
	switch a := c.Action.(type) {
	case fsm.Accept:
		return w.accept(i, c.Node, a)
	case fsm.Settle:
		return fsm.Result{Verdict: fsm.Done}
	case fsm.GrantLeases:
		return w.grant(i, a)
	case fsm.RenewLeases:
		return w.renew(i, a)
	case fsm.ExpireLeases:
		return w.expire(a)
	case fsm.RecordOutcomes:
		return w.record(i, a)
	case fsm.Hold:
		return w.operate(a.ID, func(st *fsm.RecipientStatus) bool {
			if st.State != fsm.RecipientQueued {
				return false
			}
			st.State, st.Reason, st.Report = fsm.RecipientHeld, a.Reason, 0
			return true
		})
	case fsm.Release:
		held := make(map[mail.Domain]bool)
		m := w.find(a.ID)
		for n := range w.domains {
			held[n] = m != nil && m.has(n, fsm.RecipientHeld) > 0
		}
		r := w.operate(a.ID, func(st *fsm.RecipientStatus) bool {
			if st.State != fsm.RecipientHeld {
				return false
			}
			st.State, st.Reason, st.Report = fsm.RecipientQueued, "", 0
			return true
		})
		for n, is := range held {
			if is && w.lifetime(n) > 0 {
				m.parts[n].released = w.now
			}
		}
		return r
	case fsm.Remove:
		r := w.operate(a.ID, func(st *fsm.RecipientStatus) bool {
			if st.State != fsm.RecipientHeld && st.State != fsm.RecipientQueued {
				return false
			}
			st.State, st.Reason, st.Report = fsm.RecipientRemoved, "", 0
			w.counted.Removed++
			return true
		})
		if r.Verdict == fsm.Done {
			w.find(a.ID).print = ""
		}
		return r
	case fsm.IssueReport:
		return w.issue(i, c.Node, a)
	case fsm.PutDomain:
		return w.putDomain(a.Domain)
	case fsm.RemoveDomain:
		return w.removeDomain(a.Name)
	case fsm.FlushDomain:
		d := w.domains[a.Name]
		if d == nil {
			return fsm.Result{Verdict: fsm.NotFound}
		}
		d.hop.Flush = i
		d.ending = 1
		return fsm.Result{Verdict: fsm.Done}
	case fsm.ResumeDomain:
		return w.resume(a.Name)
	case fsm.RecordPolicy:
		return w.recordPolicy(a)
	case fsm.ReportNextHop:
		return w.nextHop(a)
	case fsm.PutSettings:
		v := a.Settings.WithDefaults()
		if v.RecordLife < v.FingerprintLife+3_600_000 {
			return fsm.Result{Verdict: fsm.Invalid}
		}
		w.settings = v
		w.trimPrints()
		return fsm.Result{Verdict: fsm.Done}
	case fsm.Tick:
		if a.Elapsed < 0 {
			return fsm.Result{Verdict: fsm.Invalid}
		}
		w.now += min(a.Elapsed, 60_000)
		w.trimPrints()
		w.messages = slices.DeleteFunc(w.messages, func(m *twinMessage) bool {
			return m.ended && w.now-m.endedAt >= w.settings.RecordLife
		})
		return fsm.Result{Verdict: fsm.Done}
	case fsm.RecordStart:
		return w.recordStart(a)
	}
	return fsm.Result{Verdict: fsm.Invalid}
}

// recordStart keeps all starts; what is looked at are the newest ones.
func (w *Twin) recordStart(a fsm.RecordStart) fsm.Result {
	name, incarnation, _ := strings.Cut(string(a.Server), "/")
	if name == "" || incarnation == "" || a.Number == 0 {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	newest := uint64(0)
	for _, n := range w.starts[a.Server] {
		newest = max(newest, n)
	}
	if a.Number < newest {
		return fsm.Result{Verdict: fsm.Refused}
	}
	w.starts[a.Server] = append(w.starts[a.Server], a.Number)
	return fsm.Result{Verdict: fsm.Done}
}

func (w *Twin) find(id mail.QueueID) *twinMessage {
	for _, m := range w.messages {
		if m.body.ID == id || slices.Contains(m.aliases, id) {
			return m
		}
	}
	return nil
}

func (w *Twin) own(id mail.QueueID) *twinMessage {
	if m := w.find(id); m != nil && m.body.ID == id {
		return m
	}
	return nil
}

func (m *twinMessage) live() bool {
	return slices.ContainsFunc(m.status, func(st fsm.RecipientStatus) bool {
		return st.State == fsm.RecipientQueued || st.State == fsm.RecipientHeld || st.Report != 0
	})
}

func (m *twinMessage) leased() bool {
	for _, p := range m.parts {
		if p.lease != 0 {
			return true
		}
	}
	return false
}

func (m *twinMessage) matches() bool {
	return !slices.ContainsFunc(m.status, func(st fsm.RecipientStatus) bool {
		return st.State == fsm.RecipientRemoved || st.State == fsm.RecipientFailed
	})
}

// has counts the recipients of a domain that are in a state.
func (m *twinMessage) has(d mail.Domain, state fsm.RecipientState) int {
	n := 0
	for i, r := range m.envelope.Recipients {
		if r.Domain == d && m.status[i].State == state {
			n++
		}
	}
	return n
}

func (w *Twin) grantable(m *twinMessage, d mail.Domain) bool {
	p := m.parts[d]
	return p != nil && p.lease == 0 && p.retryAt <= w.now && p.doubt <= w.now && m.has(d, fsm.RecipientQueued) > 0
}

// Print is what two Accepts have in common when one repeats the other.
func Print(e mail.Envelope, b mail.BodyRef) string {
	host := func(m mail.Mailbox) string { return m.Local + "@" + strings.ToLower(m.Host) }
	var to []string
	for _, r := range e.Recipients {
		to = append(to, fmt.Sprintf("%q %d %q", host(r.Path.Mailbox), r.Notify, r.Original))
	}
	sort.Strings(to)
	return fmt.Sprintf("%q %q %d %q %v %v %x %d", host(e.From.Mailbox), to, e.Return, e.EnvelopeID, e.EightBit, e.SMTPUTF8, b.Digest, b.Size)
}

func (w *Twin) accept(i fsm.Index, node fsm.NodeName, a fsm.Accept) fsm.Result {
	id := a.Body.ID
	if m := w.find(id); m != nil {
		if m.body.ID == id {
			return fsm.Result{Verdict: fsm.Done, ID: id}
		}
		return fsm.Result{Verdict: fsm.Repeat, ID: m.body.ID}
	}
	seen := make(map[string]bool)
	for _, r := range a.Envelope.Recipients {
		path := r.Path.Local + "@" + strings.ToLower(r.Path.Host)
		if seen[path] || r.Domain == "" || r.Path.Local == "" {
			return fsm.Result{Verdict: fsm.Invalid}
		}
		seen[path] = true
	}
	if len(seen) == 0 || len(seen) > 1000 || id.IsZero() || a.Body.Size < 0 {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	print := Print(a.Envelope, a.Body)
	for _, m := range w.messages {
		if m.print == print && !m.settled && m.matches() {
			m.aliases = append(m.aliases, id)
			slices.SortFunc(m.aliases, mail.QueueID.Compare)
			w.counted.Repeats++
			return fsm.Result{Verdict: fsm.Repeat, ID: m.body.ID}
		}
	}
	m := &twinMessage{
		entry: i, envelope: a.Envelope, body: a.Body, node: node, at: w.now, print: print,
		parts: make(map[mail.Domain]*twinPart),
	}
	for _, r := range a.Envelope.Recipients {
		d := w.domains[r.Domain]
		if d == nil || isOutbound(r.Domain) {
			return fsm.Result{Verdict: fsm.Refused}
		}
		m.status = append(m.status, fsm.RecipientStatus{State: fsm.RecipientQueued})
		m.parts[r.Domain] = &twinPart{number: d.number}
	}
	w.messages = append(w.messages, m)
	w.counted.Accepted++
	w.trimPrints()
	return fsm.Result{Verdict: fsm.Done, ID: id}
}

// trimPrints drops the fingerprints that are too old, and the oldest of those
// that are too many.
func (w *Twin) trimPrints() {
	var kept []*twinMessage
	for _, m := range w.messages {
		if m.print != "" && w.now-m.at >= w.settings.FingerprintLife {
			m.print = ""
		}
		if m.print != "" {
			kept = append(kept, m)
		}
	}
	for len(kept) > w.settings.FingerprintMax {
		kept[0].print = ""
		kept = kept[1:]
		w.counted.FingerprintsDropped++
	}
}

func (w *Twin) grant(i fsm.Index, g fsm.GrantLeases) fsm.Result {
	if g.Holder == "" || len(g.Messages) == 0 || len(g.Messages) > 1024 {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	if w.domains[g.Domain] == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	r := fsm.Result{Verdict: fsm.Done}
	left := w.grantMax(g.Domain)
	for _, id := range g.Messages {
		if m := w.own(id); m != nil && w.grantable(m, g.Domain) && len(r.Messages) < left {
			p := m.parts[g.Domain]
			p.lease, p.holder, p.renewal, p.begun = fsm.Token(i), g.Holder, i, false
			r.Messages = append(r.Messages, id)
		}
	}
	return r
}

type twinRecord struct {
	message *twinMessage
	domain  mail.Domain
	part    *twinPart
}

// records returns the lease records of a token, in the order of the messages.
func (w *Twin) records(t fsm.Token) []twinRecord {
	var records []twinRecord
	if t == 0 {
		return nil
	}
	for _, m := range w.messages {
		for d, p := range m.parts {
			if p.lease == t {
				records = append(records, twinRecord{m, d, p})
			}
		}
	}
	return records
}

func (w *Twin) renew(i fsm.Index, r fsm.RenewLeases) fsm.Result {
	var named []mail.QueueID
	for _, id := range r.Begun {
		if !slices.Contains(named, id) {
			named = append(named, id)
		}
	}
	records := w.records(r.Token)
	if len(records) == 0 || records[0].part.holder != r.Holder {
		return fsm.Result{Verdict: fsm.NotFound, Messages: named}
	}
	res := fsm.Result{Verdict: fsm.Done}
	prolong := false
	for _, rec := range records {
		if rec.message.has(rec.domain, fsm.RecipientQueued) == 0 || w.domains[rec.domain].hop.Stopped {
			res.Messages = append(res.Messages, rec.message.body.ID)
			continue
		}
		prolong = true
		if slices.Contains(named, rec.message.body.ID) {
			rec.part.begun = true
		}
	}
	for _, id := range named {
		if !slices.ContainsFunc(records, func(rec twinRecord) bool { return rec.message.body.ID == id }) {
			res.Messages = append(res.Messages, id)
		}
	}
	if prolong {
		for _, rec := range records {
			rec.part.renewal = i
		}
	}
	return res
}

func (w *Twin) expire(e fsm.ExpireLeases) fsm.Result {
	records := w.records(e.Token)
	if len(records) == 0 {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	if records[0].part.renewal != e.Renewal {
		return fsm.Result{Verdict: fsm.Refused}
	}
	for _, rec := range records {
		if rec.part.begun && w.inDoubt(rec.message, rec.part, e.Token) {
			w.counted.DoubtsExpired++
		}
		rec.part.lease, rec.part.begun = 0, false
	}
	return fsm.Result{Verdict: fsm.Done}
}

// inDoubt reports whether the doubt is news.
func (w *Twin) inDoubt(m *twinMessage, p *twinPart, t fsm.Token) bool {
	m.doubtful = true
	if t <= p.doubted {
		return false
	}
	p.doubted = t
	p.doubt = w.now + w.settings.DoubtWait + 60_000
	return true
}

func (w *Twin) record(i fsm.Index, r fsm.RecordOutcomes) fsm.Result {
	if r.Token == 0 || fsm.Index(r.Token) >= i || len(r.Messages) == 0 || len(r.Messages) > 1024 {
		return fsm.Result{Verdict: fsm.Invalid}
	}
	for _, o := range r.Messages {
		m := w.own(o.ID)
		if m == nil {
			w.counted.ReportsIgnored += uint64(len(o.Recipients))
			continue
		}
		var current *twinPart
		var of mail.Domain
		for d, p := range m.parts {
			if p.lease == r.Token && p.holder == r.Holder {
				current, of = p, d
			}
		}
		spoke, later := false, false
		for _, q := range o.Recipients {
			if q.Recipient < 0 || q.Recipient >= len(m.status) || q.Outcome < fsm.Delivered || q.Outcome > fsm.Failed {
				w.counted.ReportsIgnored++
				continue
			}
			d := m.envelope.Recipients[q.Recipient].Domain
			st := &m.status[q.Recipient]
			open := st.State == fsm.RecipientQueued || st.State == fsm.RecipientHeld
			mine := current != nil && d == of
			switch {
			case q.Outcome == fsm.Delivered && open:
				w.took(m, q.Recipient, mine)
				*st = fsm.RecipientStatus{State: fsm.RecipientDelivered, Reply: q.Reply, Token: r.Token}
				if q.Relayed {
					st.Report = w.owed(fsm.ReportRelayed, m, q.Recipient)
				}
				w.counted.Delivered++
			case q.Outcome == fsm.Delivered:
				w.took(m, q.Recipient, mine)
				if r.Token != st.Token && r.Token > st.DeliveredLate {
					st.DeliveredLate = r.Token
					w.counted.DeliveredLate++
				}
			case q.Outcome == fsm.InDoubt:
				if w.inDoubt(m, m.parts[d], r.Token) {
					w.counted.DoubtsReported++
				}
			case !mine:
				w.counted.ReportsIgnored++
			case q.Outcome == fsm.Deferred && q.Tried && open:
				st.Reply = q.Reply
				later = true
			case q.Outcome == fsm.Failed && open:
				st.Reply = q.Reply
				if st.State == fsm.RecipientQueued && isOutbound(d) {
					st.State = fsm.RecipientFailed
					w.counted.ReportsDropped++
				} else if st.State == fsm.RecipientQueued {
					st.State, st.Reason = fsm.RecipientHeld, "refused by the next hop"
					if hop, _ := w.of(m, q.Recipient); hop != nil && (hop.hop.Guarded || hop.hop.Stopped) {
						st.Reason += ", which has taken nothing since it came back"
					} else {
						st.Report = w.owed(fsm.ReportFailure, m, q.Recipient)
					}
					w.refused(m, q.Recipient)
				}
			}
			if mine && (q.Tried || q.Outcome != fsm.Deferred) {
				spoke = true
			}
		}
		if current != nil {
			current.lease, current.begun = 0, false
			if spoke {
				current.attempts++
			}
			if later {
				first, most := w.settings.RetryMin, w.settings.RetryMax
				own := w.domains[of] != nil && w.domains[of].config.Schedule.RetryMin > 0
				if own {
					first, most = w.domains[of].config.Schedule.RetryMin, w.domains[of].config.Schedule.RetryMax
				}
				wait := first
				for n := 1; n < current.attempts && wait < most; n++ {
					wait = min(2*wait, most)
				}
				if own {
					id := m.body.ID
					share := (int(id[14])*256 + int(id[15]) + 389*current.attempts) % 65536 % 1024
					wait += wait / 4 * fsm.Millis(share) / 1024
				}
				current.retryAt = w.now + wait
			}
		}
	}
	return fsm.Result{Verdict: fsm.Done}
}

func (w *Twin) operate(id mail.QueueID, each func(*fsm.RecipientStatus) bool) fsm.Result {
	m := w.find(id)
	if m == nil {
		return fsm.Result{Verdict: fsm.NotFound}
	}
	changed := false
	for i := range m.status {
		changed = each(&m.status[i]) || changed
	}
	if !changed {
		return fsm.Result{Verdict: fsm.Refused}
	}
	r := fsm.Result{Verdict: fsm.Done, ID: m.body.ID}
	for _, p := range m.parts {
		r.MayStillArrive = r.MayStillArrive || p.lease != 0 && p.begun || p.doubt > w.now
	}
	return r
}

// Counts counts what fsm.State.Counts must say.
func (w *Twin) Counts(d mail.Domain) fsm.Counts {
	var c fsm.Counts
	if w.domains[d] == nil {
		return c
	}
	for _, m := range w.messages {
		p := m.parts[d]
		if p == nil {
			continue
		}
		queued := m.has(d, fsm.RecipientQueued) > 0
		switch {
		case p.lease != 0:
			c.Leased++
		case w.grantable(m, d):
			c.Due++
		case queued:
			c.Waiting++
		}
		if queued {
			c.Queued++
		}
		if m.has(d, fsm.RecipientHeld) > 0 {
			c.Held++
		}
	}
	return c
}
