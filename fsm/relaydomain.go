package fsm

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// domain is the stored form of a relay domain and of its next hop. Immutable,
// as message is.
type domain struct {
	number domainNumber
	config Domain
	hop    NextHop
	// ending says that the retry waits of the domain are being ended: those of
	// messages accepted by this entry or later are still to be looked at. Zero where
	// none are.
	ending Index
	guard  guard
	// warned is the entry up to which messages were looked at that wait for long.
	warned Index
	// policy is what was fetched last, nil where nothing was or nothing is wanted.
	policy *STSPolicy
}

// Domain returns the configuration of a relay domain.
func (s *State) Domain(n mail.Domain) (Domain, bool) {
	d, ok := s.domain(n)
	if !ok {
		return Domain{}, false
	}
	return d.config.clone(), true
}

// Domains returns all relay domains by name.
func (s *State) Domains() []Domain {
	return slices.DeleteFunc(s.Destinations(), func(d Domain) bool {
		_, outbound := d.Outbound()
		return outbound
	})
}

// Destinations returns all domains that messages are queued for, by name: the relay
// domains, and the outbound domains, which nobody may send mail to.
func (s *State) Destinations() []Domain {
	all := make([]Domain, 0, s.names.len())
	for item := range s.names.all() {
		d, _ := s.domains.get(&domain{number: item.number})
		all = append(all, d.config.clone())
	}
	return all
}

// NextHop returns the state of a relay domain's next hop; the zero value for
// what is no relay domain.
func (s *State) NextHop(n mail.Domain) NextHop {
	d, ok := s.domain(n)
	if !ok {
		return NextHop{}
	}
	h := d.hop
	h.Failed, h.Barred = slices.Clone(h.Failed), slices.Clone(h.Barred)
	h.Guarded, h.Stopped, h.StoppedAt, h.Refused = d.guard.armed, d.guard.stopped, d.guard.stoppedAt, len(d.guard.refused)
	return h
}

func (s *State) domain(n mail.Domain) (*domain, bool) {
	item, ok := s.names.get(nameItem{name: n})
	if !ok {
		return nil, false
	}
	return s.domains.get(&domain{number: item.number})
}

func (d Domain) clone() Domain {
	d.Targets, d.ETRN = slices.Clone(d.Targets), slices.Clone(d.ETRN)
	d.TLS.Pins, d.TLS.Names = slices.Clone(d.TLS.Pins), slices.Clone(d.TLS.Names)
	d.Callers.Pins = slices.Clone(d.Callers.Pins)
	return d
}

func (d Domain) equal(o Domain) bool {
	return d.sameRoute(o) && d.Schedule == o.Schedule && d.ConnectionsMax == o.ConnectionsMax && slices.Equal(d.ETRN, o.ETRN) && d.TLS.equal(o.TLS) &&
		d.Bounce == o.Bounce && d.DelayWarning == o.DelayWarning && d.XClient == o.XClient && d.Callers.equal(o.Callers)
}

func (d Domain) sameRoute(o Domain) bool {
	return d.Name == o.Name && d.MX == o.MX && d.OnDemand == o.OnDemand && slices.Equal(d.Targets, o.Targets)
}

// flaw says what makes a configuration malformed, or "".
func (d Domain) flaw() string {
	want, outbound := d.Outbound()
	if !outbound {
		want = d.Name
	}
	if name, err := mail.ParseDomain(string(want)); err != nil || name != want {
		return "malformed domain name"
	}
	switch n := len(d.Targets); {
	case d.MX && n > 0:
		return "both MX and targets"
	case d.OnDemand && (d.MX || n > 0):
		return "mail that is to be called for, and has a next hop"
	case !d.MX && n == 0 && !d.OnDemand:
		return "neither MX nor targets"
	case n > targetsMax:
		return "too many targets"
	case d.ConnectionsMax < 0 || d.ConnectionsMax > connectionsMax:
		return "impossible number of connections"
	case len(d.ETRN) > networksMax:
		return "too many networks"
	case d.Bounce > BounceAlways:
		return "unknown bounce policy"
	case d.DelayWarning < 0 || d.DelayWarning > lifetimeMax:
		return "impossible delay of a warning"
	}
	if flaw := d.Callers.flaw(); flaw != "" {
		return flaw
	}
	for _, n := range d.ETRN {
		if !n.IsValid() || n != n.Masked() || n.Addr().Zone() != "" {
			return "malformed network"
		}
	}
	if flaw := d.Schedule.flaw(); flaw != "" {
		return flaw
	}
	if flaw := d.TLS.flaw(); flaw != "" {
		return flaw
	}
	for _, t := range d.Targets {
		if t.Host == "" || len(t.Host) > 255 || t.Port == 0 || !utf8.ValidString(t.Host) {
			return "malformed target"
		}
		if strings.ContainsFunc(t.Host, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '[' || r == ']' }) {
			return "malformed target"
		}
	}
	return ""
}

// newer says that the configuration has what only version 4 of commands can say.
func (d Domain) newer() bool {
	return d.Schedule != (Schedule{}) || d.ConnectionsMax != 0 || len(d.ETRN) > 0 || !d.TLS.equal(TLSPolicy{}) || d.latest() || d.called()
}

func (t TLSPolicy) equal(o TLSPolicy) bool {
	return t.Mode == o.Mode && t.Authorities == o.Authorities && slices.Equal(t.Pins, o.Pins) && slices.Equal(t.Names, o.Names)
}

// flaw says what makes a policy malformed, or "". Whether it makes sense is seen
// before it is proposed.
func (t TLSPolicy) flaw() string {
	if t.Mode > TLSMTASTS || len(t.Pins) > pinsMax || len(t.Names) > namesMax || len(t.Authorities) > authoritiesMax || !utf8.ValidString(t.Authorities) {
		return "malformed TLS policy"
	}
	for _, n := range t.Names {
		if n == "" || len(n) > 255 || !utf8.ValidString(n) {
			return "malformed name in a TLS policy"
		}
	}
	return ""
}

// flaw says what makes a schedule impossible, or "".
func (c Schedule) flaw() string {
	switch {
	case (c.RetryMin == 0) != (c.RetryMax == 0):
		return "retry minimum without maximum, or the other way round"
	case c.RetryMin < 0 || c.RetryMax > waitMax || c.RetryMin > c.RetryMax:
		return "impossible retry times"
	case c.Lifetime < 0 || c.Lifetime > lifetimeMax:
		return "impossible lifetime"
	}
	return ""
}

// putDomain adds a relay domain or replaces its configuration. A changed
// route is another next hop, so what was seen of the old one is
// forgotten; waits go on, FlushDomain ends them.
func (s *State) putDomain(c Domain) Result {
	if flaw := c.flaw(); flaw != "" {
		return invalid("%s", flaw)
	}
	if _, outbound := c.Outbound(); outbound {
		return invalid("malformed domain name")
	}
	c = c.clone()
	old, ok := s.domain(c.Name)
	switch {
	case !ok && s.domains.len() >= domainsMax:
		return invalid("more than %d relay domains", domainsMax)
	case !ok:
		s.addDomain(c)
	case old.config.sameRoute(c):
		d := *old
		d.configure(c)
		s.domains.set(&d)
	default:
		d := *old
		d.configure(c)
		if d.guard.armed || d.guard.stopped {
			d.guard = guard{armed: true}
		}
		d.hop.Failed, d.hop.Barred, d.hop.Detail = nil, nil, ""
		s.putNextHop(&d, NextHopUp)
	}
	return Result{Verdict: Done}
}

// configure replaces a copy's configuration.
func (d *domain) configure(c Domain) {
	d.config = c
	if c.DelayWarning == 0 {
		d.warned = 0
	}
	if c.TLS.Mode != TLSMTASTS {
		d.policy = nil
	}
}

// STSPolicyBytesMax is how long a policy is that is kept for all nodes. They have some
// hundred octets; a longer one each node has for itself.
const STSPolicyBytesMax = 8 << 10

// recordPolicy keeps a policy for all nodes.
func (s *State) recordPolicy(r RecordPolicy) Result {
	old, ok := s.domain(r.Domain)
	switch {
	case !ok:
		return notFound("%q is not a relay domain", r.Domain)
	case old.config.TLS.Mode != TLSMTASTS:
		return refused("%q goes by no MTA-STS policy", r.Domain)
	}
	if flaw := r.Policy.flaw(); flaw != "" {
		return invalid("%s", flaw)
	}
	d := *old
	d.policy = &r.Policy
	s.domains.set(&d)
	return Result{Verdict: Done}
}

// flaw says what makes a policy impossible, or "".
func (p STSPolicy) flaw() string {
	switch {
	case len(p.ID) > stsIDBytesMax || !utf8.ValidString(p.ID):
		return "malformed id of an MTA-STS policy"
	case len(p.Text) > STSPolicyBytesMax || !utf8.ValidString(p.Text) || p.Fetched < 0:
		return "malformed MTA-STS policy"
	}
	return ""
}

// STSPolicy returns the MTA-STS policy of a domain that a node fetched last.
func (s *State) STSPolicy(n mail.Domain) (STSPolicy, bool) {
	d, ok := s.domain(n)
	if !ok || d.policy == nil {
		return STSPolicy{}, false
	}
	return *d.policy, true
}

// addDomain adds a domain, whose configuration is then the State's.
func (s *State) addDomain(c Domain) {
	s.domainLast++
	s.names.set(nameItem{c.Name, s.domainLast})
	s.counts.set(countsItem{domain: s.domainLast})
	s.setDomain(&domain{
		number: s.domainLast,
		config: c,
		hop:    NextHop{State: NextHopUp, Since: s.now},
	})
}

// setDomain stores a domain that is new.
func (s *State) setDomain(d *domain) {
	s.domains.set(d)
	if _, is := d.config.Outbound(); is {
		s.outbound++
	}
}

// dropDomain forgets a domain.
func (s *State) dropDomain(d *domain) {
	s.names.remove(nameItem{name: d.config.Name})
	s.domains.remove(d)
	s.counts.remove(countsItem{domain: d.number})
	s.endings.remove(d.number)
	if _, is := d.config.Outbound(); is {
		s.outbound--
	}
}

// removeDomain ends a relay domain of which nothing is left to do.
func (s *State) removeDomain(n mail.Domain) Result {
	d, ok := s.domain(n)
	if !ok {
		return notFound("%q is not a relay domain", n)
	}
	c, _ := s.counts.get(countsItem{domain: d.number})
	switch {
	case c.Queued > 0 || c.Held > 0:
		return refused("%d messages queued and %d held for %q", c.Queued, c.Held, n)
	case c.Leased > 0:
		return refused("a node holds a lease for %q", n)
	}
	s.dropDomain(d)
	return Result{Verdict: Done}
}

// flushDomain makes waiting messages due and has every node try the next hop.
func (s *State) flushDomain(i Index, n mail.Domain) Result {
	old, ok := s.domain(n)
	if !ok {
		return notFound("%q is not a relay domain", n)
	}
	d := *old
	d.hop.Flush = i
	s.domains.set(&d)
	s.endRetryWaits(&d)
	return Result{Verdict: Done}
}

// reportNextHop takes what one node saw. The next hop is down when two nodes
// failed since it was last up, or all where there are fewer: one node's own
// network must not stop the others. If it answered one of these, it is not away, and
// refuses us. One node that got through makes it up, and if it had been down or
// refusing, the retry waits from before end, and the guard watches what it says: for
// who refuses everybody is perhaps being set up anew.
func (s *State) reportNextHop(r ReportNextHop) Result {
	if r.Node == "" || len(r.Node) > nodeNameBytesMax || !utf8.ValidString(string(r.Node)) {
		return invalid("malformed node name")
	}
	if r.Up && r.Refused {
		return invalid("a next hop that is up and refuses")
	}
	old, ok := s.domain(r.Domain)
	if !ok {
		return notFound("%q is not a relay domain", r.Domain)
	}
	if old.config.OnDemand { // of a route that it had before
		return refused("%q has no next hop", r.Domain)
	}
	d := *old
	d.hop.Detail = cut(r.Detail, detailBytesMax)
	if r.Up {
		d.hop.Failed, d.hop.Barred = nil, nil
		returned := old.hop.State.Probed()
		if returned && d.guarded() && !d.guard.stopped {
			d.guard = guard{armed: true}
		}
		s.putNextHop(&d, NextHopUp)
		if returned {
			s.endRetryWaits(&d)
		}
		return Result{Verdict: Done}
	}
	if r.Refused {
		d.hop.Failed, d.hop.Barred = without(d.hop.Failed, r.Node), with(d.hop.Barred, r.Node)
	} else {
		d.hop.Failed, d.hop.Barred = with(d.hop.Failed, r.Node), without(d.hop.Barred, r.Node)
	}
	switch {
	case len(d.hop.Failed)+len(d.hop.Barred) < min(2, s.settings.Voters):
		s.putNextHop(&d, NextHopSuspect)
	case len(d.hop.Barred) > 0:
		s.putNextHop(&d, NextHopRefusing)
	default:
		s.putNextHop(&d, NextHopDown)
	}
	return Result{Verdict: Done}
}

// flaw says which invariant is broken, or "".
func (h NextHop) flaw() string {
	ascending := func(nodes []NodeName) bool {
		return slices.IsSorted(nodes) && len(slices.Compact(slices.Clone(nodes))) == len(nodes)
	}
	switch {
	case h.State < NextHopUp || h.State > NextHopRefusing || !ascending(h.Failed) || !ascending(h.Barred):
		return "impossible next hop"
	case slices.ContainsFunc(h.Barred, func(n NodeName) bool { return slices.Contains(h.Failed, n) }):
		return "next hop that a node both reaches and does not"
	case h.State == NextHopRefusing && len(h.Barred) == 0:
		return "next hop that refuses nobody"
	}
	return ""
}

// with returns sorted nodes and that one, as far as there is room.
func with(nodes []NodeName, n NodeName) []NodeName {
	at, found := slices.BinarySearch(nodes, n)
	if found || len(nodes) >= failedNodesMax {
		return nodes
	}
	return slices.Insert(slices.Clone(nodes), at, n)
}

// without returns sorted nodes but that one.
func without(nodes []NodeName, n NodeName) []NodeName {
	at, found := slices.BinarySearch(nodes, n)
	switch {
	case !found:
		return nodes
	case len(nodes) == 1:
		return nil
	}
	return slices.Delete(slices.Clone(nodes), at, at+1)
}

// refusing reports whether the State has what only version 7 of snapshots can say: a
// next hop that refuses a node.
func (s *State) refusing() bool {
	for d := range s.domains.all() {
		if len(d.hop.Barred) > 0 {
			return true
		}
	}
	return false
}

// putNextHop stores d, a copy, with its next hop in the given state.
func (s *State) putNextHop(d *domain, to NextHopState) {
	if from := d.hop.State; from != to {
		d.hop.State, d.hop.Since = to, s.now
		s.effects = append(s.effects, NextHopChanged{d.config.Name, from, to})
	}
	s.domains.set(d)
}
