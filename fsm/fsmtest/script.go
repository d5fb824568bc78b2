package fsmtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Script interprets commands that a mail administrator can read, against one
// queue:
//
//	domain put NAME [retry=1m,1h] [life=30h] [connections=20] [bounce=always] [warn=4h] | domain remove NAME | domain flush NAME | domain resume NAME
//	settings [doubt=10m] [prints=100000] [retry=1m,30m] [voters=3]
//	accept ID to=A,B [from=S] [body=TEXT] [node=N] [8bit] [utf8] [ret=full] [envid=X] [notify=never|success|delay|failure] [orcpt=X] [settled=ID,ID]
//	settle ID,ID
//	grant LEASE HOLDER DOMAIN ID,ID
//	renew LEASE HOLDER [begun=ID,ID] [as=RENEWAL]
//	expire LEASE [seen=RENEWAL]
//	report LEASE HOLDER ID [A=delivered|relayed|doubt|deferred|failed|untried ...]
//	issue ID REPORT kind=failure|expiry|delay|relayed of=A,B [through=DOMAIN] | issue ID - kind=K of=A,B why=WORD
//	hold ID | release ID | remove ID
//	nexthop DOMAIN up|failed|refused NODE
//	tick DURATION
//	start SERVER NUMBER
//	show ID | due DOMAIN | leases | status DOMAIN | totals | starts
//
// Ids, leases and renewals are names that the script gives. Durations are 30s,
// 10m or 25h; a tick of more than a minute is several of a minute. Each command goes through
// its encoding, and after it the State is checked, and exchanged for a copy that
// was encoded and decoded.
type Script struct {
	state   *fsm.State
	prepare func(*fsm.State)
	index   fsm.Index
	minted  byte
	ids     map[string]mail.QueueID
	names   map[mail.QueueID]string
	entries map[string]fsm.Index // leases and renewals
	leases  map[fsm.Token]string
	output  strings.Builder
}

// NewScript returns a Script on an empty queue. Where prepare is not nil, it is
// called with each State before the script uses it.
func NewScript(prepare func(*fsm.State)) *Script {
	s := &Script{
		state: fsm.New(), prepare: prepare,
		ids: make(map[string]mail.QueueID), names: make(map[mail.QueueID]string),
		entries: make(map[string]fsm.Index), leases: make(map[fsm.Token]string),
	}
	if prepare != nil {
		prepare(s.state)
	}
	return s
}

// Run returns the text of a script with the output that its commands give now.
// A text is blocks of command lines, a line "----", and output up to an empty
// line; lines that begin with # are kept. An error is a line that cannot be
// read, or a State that breaks an invariant.
func (s *Script) Run(text string) (string, error) {
	var out strings.Builder
	inOutput := false
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == "":
			inOutput = false
			out.WriteString("\n")
		case inOutput:
		case line == "----":
			inOutput = true
			out.WriteString("----\n" + s.output.String())
			s.output.Reset()
		default:
			out.WriteString(line + "\n")
			if strings.HasPrefix(line, "#") {
				continue
			}
			if err := s.command(strings.Fields(line)); err != nil {
				return out.String(), fmt.Errorf("%q: %w", line, err)
			}
		}
	}
	return out.String(), nil
}

func (s *Script) say(format string, args ...any) { fmt.Fprintf(&s.output, format+"\n", args...) }

// words of one command line: the positional ones, and the options.
type words struct {
	at      []string
	options map[string]string
	listed  []string // options in order
}

func read(fields []string) words {
	w := words{options: make(map[string]string)}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			w.at = append(w.at, f)
			continue
		}
		w.options[key] = value
		w.listed = append(w.listed, key)
	}
	w.at = append(w.at, make([]string, 5)...)
	return w
}

func (s *Script) command(fields []string) error {
	w := read(fields[1:])
	id := func() mail.QueueID { return s.id(w.at[0]) }
	switch fields[0] {
	case "domain":
		name := mail.Domain(w.at[1])
		switch w.at[0] {
		case "put":
			d, err := s.schedule(w)
			if err != nil {
				return err
			}
			d.Name, d.MX = name, true
			return s.apply(fsm.PutDomain{Domain: d})
		case "remove":
			return s.apply(fsm.RemoveDomain{Name: name})
		case "resume":
			return s.apply(fsm.ResumeDomain{Name: name})
		case "flush":
			return s.apply(fsm.FlushDomain{Name: name})
		}
	case "settings":
		return s.settings(w)
	case "accept":
		return s.accept(w)
	case "settle":
		return s.apply(fsm.Settle{}, s.idList(w.at[0])...)
	case "grant":
		s.entries[w.at[0]], s.leases[fsm.Token(s.index+1)] = s.index+1, w.at[0]
		return s.apply(fsm.GrantLeases{Holder: fsm.NodeName(w.at[1]), Domain: mail.Domain(w.at[2]), Messages: s.idList(w.at[3])})
	case "renew":
		if as := w.options["as"]; as != "" {
			s.entries[as] = s.index + 1
		}
		return s.apply(fsm.RenewLeases{
			Holder: fsm.NodeName(w.at[1]), Token: fsm.Token(s.entries[w.at[0]]), Begun: s.idList(w.options["begun"]),
		})
	case "expire":
		seen := w.options["seen"]
		if seen == "" {
			seen = w.at[0]
		}
		return s.apply(fsm.ExpireLeases{Token: fsm.Token(s.entries[w.at[0]]), Renewal: s.entries[seen]})
	case "report":
		return s.report(w)
	case "issue":
		return s.issue(w)
	case "hold":
		return s.apply(fsm.Hold{ID: id(), Reason: w.options["reason"]})
	case "release":
		return s.apply(fsm.Release{ID: id()})
	case "remove":
		return s.apply(fsm.Remove{ID: id()})
	case "nexthop":
		return s.apply(fsm.ReportNextHop{Domain: mail.Domain(w.at[0]), Up: w.at[1] == "up", Refused: w.at[1] == "refused", Node: fsm.NodeName(w.at[2])})
	case "start":
		number, err := strconv.ParseUint(w.at[1], 10, 64)
		if err != nil {
			return err
		}
		return s.apply(fsm.RecordStart{Server: fsm.ServerID(w.at[0]), Number: number})
	case "tick":
		d, err := duration(w.at[0])
		if err != nil {
			return err
		}
		for d > 0 && err == nil {
			step := min(d, 60_000)
			d -= step
			_, err = s.enter(fsm.Command{Action: fsm.Tick{Elapsed: step}}, d == 0)
		}
		return err
	case "show", "due", "leases", "status", "totals", "starts":
		return s.show(fields[0], w)
	}
	return errors.New("unknown command")
}

func duration(text string) (fsm.Millis, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text[:len(text)-1])
	unit, ok := map[byte]fsm.Millis{'s': 1000, 'm': 60_000, 'h': 3_600_000}[text[len(text)-1]]
	if err != nil || !ok {
		return 0, fmt.Errorf("duration %q", text)
	}
	return fsm.Millis(n) * unit, nil
}

func (s *Script) settings(w words) error {
	var v fsm.Settings
	var err error
	set := func(to *fsm.Millis, text string) {
		d, e := duration(text)
		*to, err = d, errors.Join(err, e)
	}
	set(&v.DoubtWait, w.options["doubt"])
	least, most, _ := strings.Cut(w.options["retry"], ",")
	set(&v.RetryMin, least)
	set(&v.RetryMax, most)
	v.FingerprintMax, _ = strconv.Atoi(w.options["prints"])
	v.Voters, _ = strconv.Atoi(w.options["voters"])
	if err != nil {
		return err
	}
	return s.apply(fsm.PutSettings{Settings: v})
}

// schedule reads the options of "domain put".
func (s *Script) schedule(w words) (d fsm.Domain, err error) {
	least, most, _ := strings.Cut(w.options["retry"], ",")
	for _, o := range []struct {
		to   *fsm.Millis
		text string
	}{{&d.Schedule.RetryMin, least}, {&d.Schedule.RetryMax, most}, {&d.Schedule.Lifetime, w.options["life"]}, {&d.DelayWarning, w.options["warn"]}} {
		if *o.to, err = duration(o.text); err != nil {
			return d, err
		}
	}
	if n := w.options["connections"]; n != "" {
		d.ConnectionsMax, err = strconv.Atoi(n)
	}
	if w.options["bounce"] == "always" {
		d.Bounce = fsm.BounceAlways
	}
	return d, err
}

// id returns the id of a name, which is minted at first sight.
func (s *Script) id(name string) mail.QueueID {
	id, ok := s.ids[name]
	if !ok {
		s.minted++
		id = mail.MintQueueID(1_700_000_000_000+uint64(s.minted), [10]byte{s.minted})
		s.ids[name], s.names[id] = id, name
	}
	return id
}

func (s *Script) idList(names string) []mail.QueueID {
	var ids []mail.QueueID
	for name := range strings.SplitSeq(names, ",") {
		if name != "" {
			ids = append(ids, s.id(name))
		}
	}
	return ids
}

func (s *Script) nameList(ids []mail.QueueID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = s.names[id]
	}
	return strings.Join(names, " ")
}

func (s *Script) accept(w words) error {
	from, err := mail.ParseReversePath(w.options["from"], true)
	if err != nil {
		return err
	}
	e := mail.Envelope{
		From:       from,
		EightBit:   slices.Contains(w.at, "8bit"),
		SMTPUTF8:   slices.Contains(w.at, "utf8"),
		EnvelopeID: w.options["envid"],
	}
	if w.options["ret"] == "full" {
		e.Return = mail.ReturnFull
	}
	for to := range strings.SplitSeq(w.options["to"], ",") {
		if to == "" {
			continue
		}
		p, err := mail.ParseForwardPath(to, true)
		if err != nil {
			return err
		}
		r := mail.Recipient{Path: p, Domain: p.Domain(), Original: w.options["orcpt"]}
		r.Notify = map[string]mail.Notify{
			"never": mail.NotifyNever, "success": mail.NotifySuccess, "delay": mail.NotifyDelay, "failure": mail.NotifyFailure,
		}[w.options["notify"]]
		e.Recipients = append(e.Recipients, r)
	}
	b := mail.NewBody([]byte(w.options["body"]))
	return s.applyAs(w.options["node"], fsm.Accept{Envelope: e, Body: b.Ref(s.id(w.at[0]))}, s.idList(w.options["settled"])...)
}

func (s *Script) report(w words) error {
	id := s.id(w.at[2])
	o := fsm.MessageOutcomes{ID: id}
	m, _ := s.state.Message(id)
	for _, to := range w.listed {
		k := position(m, to)
		q := fsm.RecipientOutcome{Recipient: k, Tried: true}
		switch w.options[to] {
		case "delivered", "relayed":
			q.Relayed = w.options[to] == "relayed"
			q.Outcome, q.Reply = fsm.Delivered, mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{2, 0, 0}, Text: "Ok"}
		case "doubt":
			q.Outcome = fsm.InDoubt
		case "deferred":
			q.Outcome, q.Reply = fsm.Deferred, mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{4, 7, 1}, Text: "Greylisted"}
		case "failed":
			q.Outcome, q.Reply = fsm.Failed, mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 1}, Text: "No such user"}
		case "untried":
			q.Outcome, q.Tried = fsm.Deferred, false
		default:
			return fmt.Errorf("outcome %q", w.options[to])
		}
		o.Recipients = append(o.Recipients, q)
	}
	return s.apply(fsm.RecordOutcomes{
		Holder: fsm.NodeName(w.at[1]), Token: fsm.Token(s.entries[w.at[0]]), Messages: []fsm.MessageOutcomes{o},
	})
}

// position is that of a recipient, -1 for none.
func position(m fsm.Message, to string) int {
	return slices.IndexFunc(m.Envelope.Recipients, func(r mail.Recipient) bool { return r.Path.String() == to })
}

func (s *Script) issue(w words) error {
	m, _ := s.state.Message(s.id(w.at[0]))
	a := fsm.IssueReport{Message: s.id(w.at[0]), Reason: w.options["why"]}
	for a.Kind.String() != w.options["kind"] {
		if a.Kind++; a.Kind > fsm.ReportRelayed {
			return fmt.Errorf("kind %q", w.options["kind"])
		}
	}
	for of := range strings.SplitSeq(w.options["of"], ",") {
		a.Recipients = append(a.Recipients, position(m, of))
	}
	if w.at[1] != "-" {
		to := mail.Recipient{Path: mail.ForwardPath{Mailbox: m.Envelope.From.Mailbox}}
		if to.Domain = mail.Domain(w.options["through"]); to.Domain == "" {
			to.Domain = fsm.OutboundDomain(to.Path.Domain())
		}
		a.Report = fsm.Accept{Envelope: mail.Envelope{Recipients: []mail.Recipient{to}}, Body: mail.NewBody([]byte(w.at[1])).Ref(s.id(w.at[1]))}
	}
	return s.apply(a)
}

func (s *Script) apply(a fsm.Action, settled ...mail.QueueID) error {
	return s.applyAs("", a, settled...)
}

func (s *Script) applyAs(node string, a fsm.Action, settled ...mail.QueueID) error {
	at := s.output.Len()
	r, err := s.enter(fsm.Command{Node: fsm.NodeName(node), Settled: settled, Action: a}, true)
	effects := s.output.String()[at:]
	before := s.output.String()[:at]
	s.output.Reset()
	s.output.WriteString(before)
	text := r.Verdict.String()
	switch a.(type) {
	case fsm.Accept:
		if r.Verdict == fsm.Done {
			text = "accepted as " + s.names[r.ID]
		} else if r.Verdict == fsm.Repeat {
			text = "repeat of " + s.names[r.ID]
		}
	case fsm.GrantLeases:
		if r.Verdict == fsm.Done {
			text = strings.TrimSpace("granted " + s.nameList(r.Messages))
			if len(r.Messages) == 0 {
				text = "granted nothing"
			}
		}
	case fsm.RenewLeases:
		if len(r.Messages) > 0 {
			text += ", stop " + s.nameList(r.Messages)
		}
	}
	if r.MayStillArrive {
		text += ", may still be delivered"
	}
	if r.Text != "" && r.Verdict != fsm.NotFound {
		text += ": " + s.named(r.Text)
	}
	s.say("%s", text)
	s.output.WriteString(effects)
	return err
}

// named replaces entries by the names that the script gave them.
func (s *Script) named(text string) string {
	fields := strings.Fields(text)
	for i, f := range fields {
		for name, entry := range s.entries { // each entry has one name
			if f == fmt.Sprint(uint64(entry)) {
				fields[i] = name
			}
		}
	}
	return strings.Join(fields, " ")
}

// enter takes one entry through all that an entry goes through, and then, if it
// is to restart, exchanges the State for an encoded and decoded copy.
func (s *Script) enter(c fsm.Command, restart bool) (fsm.Result, error) {
	b, err := fsm.EncodeCommand(c)
	if err != nil {
		return fsm.Result{}, err
	}
	if c, err = fsm.DecodeCommand(b); err != nil {
		return fsm.Result{}, err
	}
	s.index++
	before := s.state.Snapshot()
	r, effects := s.state.Apply(s.index, c)
	for _, e := range effects {
		switch e := e.(type) {
		case fsm.Finished:
			s.say("  the body of %s is not needed any more", s.names[e.ID])
		case fsm.Queued:
			s.say("  mail is due for %s", e.Domain)
		case fsm.DomainStopped:
			s.say("  delivery to %s is stopped", e.Domain)
		case fsm.NextHopChanged:
			s.say("  next hop of %s: %s, was %s", e.Domain, e.To, e.From)
		}
	}
	if err := Step(before, s.index, c, r, effects, s.state); err != nil {
		return r, err
	}
	if !restart {
		return r, nil
	}
	var encoded bytes.Buffer
	if err := s.state.Encode(&encoded); err != nil {
		return r, err
	}
	if s.state, err = fsm.Decode(&encoded); err != nil {
		return r, err
	}
	if s.prepare != nil {
		s.prepare(s.state)
	}
	return fsm.DecodeResult(fsm.EncodeResult(r))
}

func (s *Script) show(what string, w words) error {
	switch what {
	case "due":
		if ids := slices.Collect(s.state.Due(mail.Domain(w.at[0]))); len(ids) > 0 {
			s.say("due: %s", s.nameList(ids))
		} else {
			s.say("nothing due")
		}
	case "leases":
		for _, l := range s.state.Leases() {
			renewed := ""
			if l.Renewal != fsm.Index(l.Token) {
				renewed = ", renewed"
			}
			s.say("%s: %s for %s%s: %s", s.leases[l.Token], l.Holder, l.Domain, renewed, s.nameList(l.Messages))
		}
		if len(s.state.Leases()) == 0 {
			s.say("no leases")
		}
	case "status":
		d := mail.Domain(w.at[0])
		n, c := s.state.NextHop(d), s.state.Counts(d)
		s.say("next hop %s, failed %v; %d queued, %d held; %d due, %d waiting, %d leased", n.State, n.Failed, c.Queued, c.Held, c.Due, c.Waiting, c.Leased)
		if len(n.Barred) > 0 {
			s.say("  refused to %v", n.Barred)
		}
		if n.Guarded || n.Stopped {
			s.say("  guarded %v, stopped %v, %d refused", n.Guarded, n.Stopped, n.Refused)
		}
	case "totals":
		t := s.state.Totals()
		s.say("%d messages, %d live, %d unsettled, %d possible duplicates, %d aliases, %d fingerprints", t.Messages, t.Live, t.Unsettled, t.Marked, t.Aliases, t.Fingerprints)
		s.say("since ever: %d accepted, %d repeats, %d delivered, %d removed, %d fingerprints dropped", t.Accepted, t.Repeats, t.Delivered, t.Removed, t.FingerprintsDropped)
		if t.Reports > 0 || t.ReportsDropped > 0 {
			s.say("%d recipients failed; %d reports, %d of them dropped", t.Failed, t.Reports, t.ReportsDropped)
		}
		s.say("doubts: %d reported, %d by expiry; %d delivered late, %d reports ignored", t.DoubtsReported, t.DoubtsExpired, t.DeliveredLate, t.ReportsIgnored)
	case "starts":
		for server, number := range s.state.Starts() {
			s.say("%s: %d", server, number)
		}
	case "show":
		s.message(w.at[0])
	}
	return nil
}

func (s *Script) message(name string) {
	m, ok := s.state.Message(s.id(name))
	if !ok {
		s.say("%s is not known", name)
		return
	}
	text := s.names[m.ID] + ": " + m.State().String()
	if !m.Settled {
		text += ", unsettled"
	}
	if m.PossibleDuplicate {
		text += ", possible duplicate"
	}
	if len(m.Aliases) > 0 {
		text += ", repeated by " + s.nameList(m.Aliases)
	}
	s.say("%s", text)
	for i, r := range m.Envelope.Recipients {
		st := m.Recipients[i]
		text := fmt.Sprintf("  %s %s", r.Path, st.State)
		if st.Reason != "" {
			text += ", " + st.Reason
		}
		if st.Report != 0 {
			text += ", the sender is to hear of its " + st.Report.String()
		}
		if st.Reply != (mail.Reply{}) {
			text += ": " + st.Reply.String()
		}
		if st.Token != 0 {
			text += ", under " + s.leases[st.Token]
		}
		if st.DeliveredLate != 0 {
			text += fmt.Sprintf(", delivered after %s under %s", st.State, s.leases[st.DeliveredLate])
		}
		s.say("%s", text)
	}
	for _, p := range m.Parts {
		text := "  for " + string(p.Domain) + ":"
		if p.Lease != 0 {
			text += fmt.Sprintf(" leased to %s by %s,", p.Holder, s.leases[p.Lease])
			if p.Begun {
				text += " begun,"
			}
		}
		if wait := p.RetryAt - s.state.Now(); wait > 0 {
			text += fmt.Sprintf(" retry in %ds,", wait/1000)
		}
		if wait := p.DoubtUntil - s.state.Now(); wait > 0 {
			text += fmt.Sprintf(" in doubt for %ds,", wait/1000)
		}
		if p.ExpiresAt > 0 {
			text += fmt.Sprintf(" expires in %ds,", (p.ExpiresAt-s.state.Now())/1000)
		}
		s.say("%s %d attempts", text, p.Attempts)
	}
}
