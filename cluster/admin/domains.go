package admin

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// targetsMax bounds the explicit next hops of one domain.
const targetsMax = 16

// understoodWait is how long a domain is put off whose schedule not all servers are
// known to understand: they say so within seconds, once they run.
const understoodWait = 5 * time.Second

// PutDomain implements adminpb.AdminServiceServer.
func (s *Service) PutDomain(ctx context.Context, r *adminpb.PutDomainRequest) (*adminpb.PutDomainReply, error) {
	d, err := s.domainOf(r.GetDomain())
	if err != nil {
		return nil, err
	}
	reply := &adminpb.PutDomainReply{}
	if !s.awaitUnderstood(ctx, fsm.PutDomain{Domain: d}) {
		if asked := r.GetDomain(); asked.RetryMinMs != nil || asked.RetryMaxMs != nil || asked.LifetimeMs != nil || asked.ConnectionsMax != nil || asked.Etrn != nil || asked.Tls != nil || asked.Bounce != nil || asked.DelayWarningMs != nil || asked.Xclient != nil || asked.CallerPins != nil || asked.Caller != nil || asked.OnDemand {
			return nil, status.Error(codes.FailedPrecondition, "not every server of the cluster is known to understand retry times, lifetimes, ceilings, networks for ETRN, TLS policies, reports to senders, XCLIENT and callers: bring all of them up, with this version; nothing was changed")
		}
		d.Schedule, d.ConnectionsMax, d.ETRN = fsm.Schedule{}, 0, nil
		reply.Warnings = append(reply.Warnings, "not every server of the cluster is known to understand retry times, lifetimes and ceilings: the domain has none; put it again when all of them are up, with this version")
	}
	st := s.cluster.Status(ctx)
	for _, t := range d.Targets {
		if whose := ownAddress(t, st, s.cluster.Members()); whose != "" {
			return nil, status.Errorf(codes.InvalidArgument, "target %s is %s: mail would come back to where it waits; name the primary", addressOf(t), whose)
		}
	}
	if _, err := s.do(ctx, change{"PutDomain", string(d.Name), "domain", configOf(d), fsm.PutDomain{Domain: d}}); err != nil {
		return nil, err
	}
	if d.OnDemand && d.Callers.User == "" && len(d.Callers.Pins) == 0 {
		reply.Warnings = append(reply.Warnings, "nobody may call for its mail: give a caller's name and password, or a key")
	}
	for _, t := range d.Targets {
		if isLoopback(t.Host) {
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("target %s is a loopback address: each node will take it for its own host", addressOf(t)))
		}
	}
	return reply, nil
}

// awaitUnderstood waits a little for every server to say that it understands an
// action.
func (s *Service) awaitUnderstood(ctx context.Context, a fsm.Action) bool {
	ctx, cancel := context.WithTimeout(ctx, understoodWait)
	defer cancel()
	for !s.cluster.Understood(a) {
		select {
		case <-time.After(understoodWait / 50):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// domainOf reads and judges the configuration of a relay domain, completed by what
// it is now. What Apply would refuse is refused here with better words.
func (s *Service) domainOf(p *adminpb.Domain) (fsm.Domain, error) {
	name, err := domainName("domain.name", p.GetName())
	if err != nil {
		return fsm.Domain{}, err
	}
	d, known := s.cluster.View().Domain(name)
	if t := p.GetTls(); t != nil {
		if d.TLS, err = s.cluster.TLSPolicy(t.GetMode(), t.GetPins(), t.GetAuthorities(), t.GetNames()); err != nil {
			return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain.tls: %s", text(err.Error()))
		}
	}
	if err := schedule(&d, p); err != nil {
		return fsm.Domain{}, err
	}
	if p.CallerPins != nil {
		if d.Callers.Pins, err = s.cluster.CallerPins(p.GetCallerPins().GetPins()); err != nil {
			return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain.caller_pins: %s", text(err.Error()))
		}
	}
	if err := reports(&d, p); err != nil {
		return fsm.Domain{}, err
	}
	if err := s.caller(&d, p.GetCaller()); err != nil {
		return fsm.Domain{}, err
	}
	ways := 0
	for _, is := range []bool{p.GetMx(), p.GetOnDemand(), len(p.GetTargets()) > 0} {
		if is {
			ways++
		}
	}
	if known && ways == 0 {
		return d, nil
	}
	d.Name, d.MX, d.OnDemand, d.Targets = name, p.GetMx(), p.GetOnDemand(), nil
	switch {
	case ways > 1:
		return fsm.Domain{}, status.Error(codes.InvalidArgument, "domain: give one of mx, targets and on_demand")
	case ways == 0:
		return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain: %q is not a relay domain yet: say where its mail goes, by targets, mx or on_demand", name)
	}
	if len(p.GetTargets()) > targetsMax {
		return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain.targets: %d, and at most %d are allowed", len(p.GetTargets()), targetsMax)
	}
	for i, t := range p.GetTargets() {
		host, err := targetHost(t.GetHost())
		if err != nil || t.GetPort() < 1 || t.GetPort() > 65535 {
			return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain.targets[%d]: want a host name or an IP address without brackets, and a port from 1 to 65535", i)
		}
		target := fsm.Target{Host: host, Port: uint16(t.GetPort())}
		if slices.Contains(d.Targets, target) {
			return fsm.Domain{}, status.Errorf(codes.InvalidArgument, "domain.targets[%d]: %s is listed twice", i, addressOf(target))
		}
		d.Targets = append(d.Targets, target)
	}
	return d, nil
}

// Limits of a schedule, in the units of the request.
const (
	retryMaxMS       = 7 * 24 * 3600 * 1000
	lifetimeMaxMS    = 366 * 24 * 3600 * 1000
	connectionsLimit = 1000
	networksMax      = 16
	secondMS         = 1000
	minuteMS         = 60 * secondMS
)

// schedule takes over what is said of when mail is tried, and fills in the defaults
// where nothing ever was.
func schedule(d *fsm.Domain, p *adminpb.Domain) error {
	c := &d.Schedule
	if c.RetryMin == 0 {
		c.RetryMin, c.RetryMax, c.Lifetime = fsm.RetryMinDefault, fsm.RetryMaxDefault, fsm.LifetimeDefault
	}
	if d.ConnectionsMax == 0 {
		d.ConnectionsMax = fsm.ConnectionsMaxDefault
	}
	if p.RetryMinMs != nil {
		c.RetryMin = fsm.Millis(min(p.GetRetryMinMs(), retryMaxMS+1))
	}
	if p.RetryMaxMs != nil {
		c.RetryMax = fsm.Millis(min(p.GetRetryMaxMs(), retryMaxMS+1))
	}
	if p.LifetimeMs != nil {
		c.Lifetime = fsm.Millis(min(p.GetLifetimeMs(), lifetimeMaxMS+1))
	}
	if p.Etrn != nil {
		if len(p.GetEtrn().GetNetworks()) > networksMax {
			return status.Errorf(codes.InvalidArgument, "domain.etrn: %d networks, and at most %d are allowed", len(p.GetEtrn().GetNetworks()), networksMax)
		}
		d.ETRN = nil
		for i, text := range p.GetEtrn().GetNetworks() {
			n, err := netip.ParsePrefix(text)
			if err != nil {
				return status.Errorf(codes.InvalidArgument, "domain.etrn.networks[%d]: want an address and the length of its prefix, as in 192.0.2.0/24", i)
			}
			d.ETRN = append(d.ETRN, n.Masked())
		}
	}
	if p.ConnectionsMax != nil {
		d.ConnectionsMax = int(min(p.GetConnectionsMax(), connectionsLimit+1))
	}
	switch {
	case c.RetryMin < secondMS:
		return status.Error(codes.InvalidArgument, "domain.retry_min_ms: want a second at the least")
	case c.RetryMax > retryMaxMS:
		return status.Error(codes.InvalidArgument, "domain.retry_max_ms: want a week at the most")
	case c.RetryMin > c.RetryMax:
		return status.Errorf(codes.InvalidArgument, "domain: the first retry after %s and the longest wait %s: want the lesser first",
			logSpan(int64(c.RetryMin)), logSpan(int64(c.RetryMax)))
	case c.Lifetime > lifetimeMaxMS || c.Lifetime != 0 && c.Lifetime < c.RetryMin:
		return status.Errorf(codes.InvalidArgument, "domain.lifetime_ms: want 0 for ever, or from the first retry, %s, to 366 days", logSpan(int64(c.RetryMin)))
	case d.ConnectionsMax < 1 || d.ConnectionsMax > connectionsLimit:
		return status.Errorf(codes.InvalidArgument, "domain.connections_max: want 1 to %d", connectionsLimit)
	}
	return nil
}

// caller takes over by which name and password a domain's mail may be called for.
func (s *Service) caller(d *fsm.Domain, p *adminpb.CallerAccount) error {
	switch {
	case p == nil:
	case p.GetUser() == "" && p.GetPassword() == "":
		d.Callers.User, d.Callers.Secret = "", ""
	default:
		// Not quoted: it may be the password, in the wrong place.
		if n := len(p.GetUser()); n == 0 || n > callerUserBytesMax || strings.ContainsFunc(p.GetUser(), func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return status.Errorf(codes.InvalidArgument, "domain.caller.user: want 1 to %d characters, none of them a space", callerUserBytesMax)
		}
		secret, err := s.cluster.CallerSecret(p.GetUser(), p.GetPassword())
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "domain.caller.password: %s", text(err.Error()))
		}
		d.Callers.User, d.Callers.Secret = p.GetUser(), secret
	}
	return nil
}

// callerUserBytesMax is how long the name of a caller is at most.
const callerUserBytesMax = 255

// reports takes over what is said of reports to senders, and of them to the next hop.
func reports(d *fsm.Domain, p *adminpb.Domain) error {
	if p.Bounce != nil {
		known := false
		for _, b := range []fsm.BouncePolicy{fsm.BounceAligned, fsm.BounceHold, fsm.BounceAlways} {
			if p.GetBounce() == b.String() {
				d.Bounce, known = b, true
			}
		}
		if !known {
			return status.Errorf(codes.InvalidArgument, "domain.bounce: %q: want aligned, hold or always", text(p.GetBounce()))
		}
	}
	if p.DelayWarningMs != nil {
		if p.GetDelayWarningMs() > lifetimeMaxMS || p.GetDelayWarningMs() > 0 && p.GetDelayWarningMs() < minuteMS {
			return status.Error(codes.InvalidArgument, "domain.delay_warning_ms: want 0 for never, or from a minute to 366 days")
		}
		d.DelayWarning = fsm.Millis(p.GetDelayWarningMs())
	}
	if p.Xclient != nil {
		d.XClient = p.GetXclient()
	}
	return nil
}

// domainName reads a relay domain's name. ParseDomain refuses wildcards too. An IPv4
// address looks like a name, and no mail is ever for it (RFC 5321 section 4.1.3).
func domainName(field, s string) (mail.Domain, error) {
	if s == "" {
		return "", status.Errorf(codes.InvalidArgument, "%s is missing", field)
	}
	d, err := mail.ParseDomain(s)
	if err != nil {
		return "", status.Errorf(codes.InvalidArgument, "%s: %s", field, text(err.Error()))
	}
	if _, err := netip.ParseAddr(string(d)); err == nil {
		return "", status.Errorf(codes.InvalidArgument, "%s: %s is an address, and no domain", field, d)
	}
	return d, nil
}

// targetHost brings a host to one form, so that the same one is seen to be it.
func targetHost(s string) (string, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.IsUnspecified() || addr.IsMulticast() {
			return "", fmt.Errorf("%q is no host", s)
		}
		return addr.Unmap().String(), nil
	}
	if strings.Trim(s, "0123456789.") == "" {
		return "", fmt.Errorf("%q is a malformed address", s)
	}
	d, err := mail.ParseDomain(s)
	return string(d), err
}

// ownAddress says which part of the cluster a target is, or "". It finds
// mistakes that show without asking the DNS, not every loop: delivery looks
// again at each attempt.
func ownAddress(t fsm.Target, st Status, members []Member) string {
	if st.Hostname != "" && t.Host == string(st.Hostname) {
		return "this node's own name"
	}
	port := strconv.Itoa(int(t.Port))
	smtpPort := t.Port == 25
	for _, a := range st.SMTPAddresses {
		host, p, err := net.SplitHostPort(a)
		if err != nil || p != port {
			continue
		}
		smtpPort = true
		if reaches(t.Host, host) {
			return "where this cluster takes mail"
		}
	}
	for _, m := range members {
		host, p, err := net.SplitHostPort(m.ClusterAddress)
		if err != nil {
			continue
		}
		if p == port && reaches(t.Host, host) {
			return "the cluster port of node " + string(m.Name)
		}
		// Several nodes on one host, as in a trial, share its loopback address
		// with the primary.
		if smtpPort && sameHost(t.Host, host) && !isLoopback(host) {
			return "node " + string(m.Name) + " of this cluster"
		}
	}
	return ""
}

// reaches reports whether a target's host leads to a node's address, the port
// being the same. A loopback address leads each node to itself, so also to a
// node that is known by another address of its host.
func reaches(target, host string) bool {
	if sameHost(target, host) {
		return true
	}
	return isLoopback(target) && (!isLoopback(host) || isLocalhost(target))
}

func sameHost(a, b string) bool {
	if addr, err := netip.ParseAddr(b); err == nil {
		b = addr.Unmap().String()
	}
	return strings.EqualFold(a, strings.TrimSuffix(b, "."))
}

// isLoopback reports whether a host is loopback whoever asks.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return isLocalhost(host) || err == nil && addr.Unmap().IsLoopback()
}

// isLocalhost knows the names that are loopback by RFC 6761 section 6.3.
func isLocalhost(host string) bool {
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func addressOf(t fsm.Target) string {
	return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
}

// routeOf is where a domain's mail goes, in words.
func routeOf(d fsm.Domain) string {
	switch {
	case d.MX:
		return "MX"
	case d.OnDemand:
		return "on demand"
	}
	all := make([]string, len(d.Targets))
	for i, t := range d.Targets {
		all[i] = addressOf(t)
	}
	return strings.Join(all, ",")
}

// configOf is a domain's configuration, in words.
func configOf(d fsm.Domain) string {
	c := d.Schedule
	if c == (fsm.Schedule{}) {
		return routeOf(d)
	}
	return fmt.Sprintf("%s, retries after %s to %s, lifetime %s, %d connections", routeOf(d),
		logSpan(int64(c.RetryMin)), logSpan(int64(c.RetryMax)), logSpan(int64(c.Lifetime)), d.ConnectionsMax) + tlsOf(d) + reportsOf(d)
}

// reportsOf is which senders a domain reports to, in words; nothing where it is nobody.
func reportsOf(d fsm.Domain) string {
	words := ""
	if d.Bounce != fsm.BounceAligned {
		words = ", bounce " + d.Bounce.String()
	}
	if d.DelayWarning > 0 {
		words += ", warning after " + logSpan(int64(d.DelayWarning))
	}
	if d.XClient {
		words += ", XCLIENT"
	}
	if d.Callers.User != "" {
		words += ", called for by " + text(d.Callers.User)
	}
	if n := len(d.Callers.Pins); n > 0 {
		words += fmt.Sprintf(", %d keys of callers", n)
	}
	return words
}

// tlsOf is a domain's TLS policy, in words; nothing where it is opportunistic.
func tlsOf(d fsm.Domain) string {
	if d.TLS.Mode == fsm.TLSOpportunistic {
		return ""
	}
	return ", TLS " + d.TLS.Mode.String()
}

// ListDomains implements adminpb.AdminServiceServer.
func (s *Service) ListDomains(ctx context.Context, _ *adminpb.ListDomainsRequest) (*adminpb.ListDomainsReply, error) {
	view := s.cluster.View()
	return &adminpb.ListDomainsReply{Freshness: s.freshness(view, s.cluster.Status(ctx)), Domains: domainStatuses(view)}, nil
}

func domainStatuses(view *fsm.State) []*adminpb.DomainStatus {
	domains := view.Domains()
	doubts := inDoubt(view, domains)
	out := make([]*adminpb.DomainStatus, len(domains))
	now := time.Now()
	for i, d := range domains {
		hop, counts := view.NextHop(d.Name), view.Counts(d.Name)
		p := &adminpb.DomainStatus{
			Domain:       domainToProto(d),
			NextHopState: nextHopState(hop.State),
			SinceUnix:    wallTime(view, hop.Since, now).Unix(),
			Detail:       text(hop.Detail),
			FailedNodes:  names(hop.Failed),
			BarredNodes:  names(hop.Barred),
			Queued:       uint64(counts.Queued), Held: uint64(counts.Held),
			Leased: uint64(counts.Leased), Waiting: uint64(counts.Waiting),
			Guarded: hop.Guarded, Stopped: hop.Stopped,
		}
		if hop.Stopped {
			p.StoppedSinceUnix = wallTime(view, hop.StoppedAt, now).Unix()
		}
		if doubts != nil {
			n := doubts[d.Name]
			p.InDoubt = &n
		}
		out[i] = p
	}
	return out
}

// doubtScanMax bounds how many messages are looked at to count those in doubt.
const doubtScanMax = 10_000

// inDoubt counts, per domain, the messages that wait for a holder in doubt; nil
// where there are too many messages to look at each.
func inDoubt(view *fsm.State, domains []fsm.Domain) map[mail.Domain]uint64 {
	n := make(map[mail.Domain]uint64)
	waiting := 0
	for _, d := range domains {
		waiting += view.Counts(d.Name).Waiting
	}
	t := view.Totals()
	if waiting == 0 || t.Marked == 0 {
		return n // who is in doubt waits, and is marked
	}
	if t.Messages > doubtScanMax {
		return nil
	}
	for m := range view.Messages(mail.QueueID{}) {
		for _, p := range m.Parts {
			if p.DoubtUntil > view.Now() && p.Lease == 0 && p.Queued > 0 {
				n[p.Domain]++
			}
		}
	}
	return n
}

func domainToProto(d fsm.Domain) *adminpb.Domain {
	p := &adminpb.Domain{Name: string(d.Name), Mx: d.MX}
	for _, t := range d.Targets {
		p.Targets = append(p.Targets, &adminpb.Target{Host: text(t.Host), Port: uint32(t.Port)})
	}
	if c := d.Schedule; c.RetryMin > 0 {
		least, most, life, connections := uint64(c.RetryMin), uint64(c.RetryMax), uint64(c.Lifetime), uint32(d.ConnectionsMax)
		p.RetryMinMs, p.RetryMaxMs, p.LifetimeMs, p.ConnectionsMax = &least, &most, &life, &connections
	}
	if d.Bounce != fsm.BounceAligned {
		policy := d.Bounce.String()
		p.Bounce = &policy
	}
	if d.DelayWarning > 0 {
		after := uint64(d.DelayWarning)
		p.DelayWarningMs = &after
	}
	if d.XClient {
		p.Xclient = &d.XClient
	}
	p.OnDemand = d.OnDemand
	if d.Callers.User != "" {
		p.Caller = &adminpb.CallerAccount{User: text(d.Callers.User)}
	}
	if len(d.Callers.Pins) > 0 {
		p.CallerPins = &adminpb.CallerPins{}
		for _, pin := range d.Callers.Pins {
			p.CallerPins.Pins = append(p.CallerPins.Pins, hex.EncodeToString(pin[:]))
		}
	}
	if t := d.TLS; t.Mode != fsm.TLSOpportunistic {
		p.Tls = &adminpb.TLSPolicy{Mode: t.Mode.String(), Authorities: t.Authorities}
		for _, pin := range t.Pins {
			p.Tls.Pins = append(p.Tls.Pins, hex.EncodeToString(pin[:]))
		}
		for _, n := range t.Names {
			p.Tls.Names = append(p.Tls.Names, text(n))
		}
	}
	if len(d.ETRN) > 0 {
		p.Etrn = &adminpb.EtrnNetworks{}
		for _, n := range d.ETRN {
			p.Etrn.Networks = append(p.Etrn.Networks, n.String())
		}
	}
	return p
}

func nextHopState(s fsm.NextHopState) adminpb.NextHopState {
	switch s {
	case fsm.NextHopUp:
		return adminpb.NextHopState_NEXT_HOP_STATE_UP
	case fsm.NextHopSuspect:
		return adminpb.NextHopState_NEXT_HOP_STATE_SUSPECT
	case fsm.NextHopDown:
		return adminpb.NextHopState_NEXT_HOP_STATE_DOWN
	case fsm.NextHopRefusing:
		return adminpb.NextHopState_NEXT_HOP_STATE_REFUSING
	}
	return adminpb.NextHopState_NEXT_HOP_STATE_UNSPECIFIED
}

// RemoveDomain implements adminpb.AdminServiceServer.
func (s *Service) RemoveDomain(ctx context.Context, r *adminpb.RemoveDomainRequest) (*adminpb.RemoveDomainReply, error) {
	name, err := domainName("name", r.GetName())
	if err != nil {
		return nil, err
	}
	if _, err := s.do(ctx, change{"RemoveDomain", string(name), "domain", "", fsm.RemoveDomain{Name: name}}); err != nil {
		return nil, err
	}
	return &adminpb.RemoveDomainReply{}, nil
}

// FlushDomain implements adminpb.AdminServiceServer.
func (s *Service) FlushDomain(ctx context.Context, r *adminpb.FlushDomainRequest) (*adminpb.FlushDomainReply, error) {
	name, err := domainName("name", r.GetName())
	if err != nil {
		return nil, err
	}
	if _, err := s.do(ctx, change{"FlushDomain", string(name), "domain", "", fsm.FlushDomain{Name: name}}); err != nil {
		return nil, err
	}
	return &adminpb.FlushDomainReply{}, nil
}

// ResumeDomain implements adminpb.AdminServiceServer.
func (s *Service) ResumeDomain(ctx context.Context, r *adminpb.ResumeDomainRequest) (*adminpb.ResumeDomainReply, error) {
	name, err := domainName("name", r.GetName())
	if err != nil {
		return nil, err
	}
	if _, err := s.do(ctx, change{"ResumeDomain", string(name), "domain", "", fsm.ResumeDomain{Name: name}}); err != nil {
		return nil, err
	}
	return &adminpb.ResumeDomainReply{}, nil
}
