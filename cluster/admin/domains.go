package admin

import (
	"context"
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

// PutDomain implements adminpb.AdminServiceServer.
func (s *Service) PutDomain(ctx context.Context, r *adminpb.PutDomainRequest) (*adminpb.PutDomainReply, error) {
	d, err := domainOf(r.GetDomain())
	if err != nil {
		return nil, err
	}
	st := s.cluster.Status(ctx)
	for _, t := range d.Targets {
		if whose := ownAddress(t, st, s.cluster.Members()); whose != "" {
			return nil, status.Errorf(codes.InvalidArgument, "target %s is %s: mail would come back to where it waits; name the primary", addressOf(t), whose)
		}
	}
	if _, err := s.do(ctx, change{"PutDomain", string(d.Name), "domain", routeOf(d), fsm.PutDomain{Domain: d}}); err != nil {
		return nil, err
	}
	reply := &adminpb.PutDomainReply{}
	for _, t := range d.Targets {
		if isLoopback(t.Host) {
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("target %s is a loopback address: each node will take it for its own host", addressOf(t)))
		}
	}
	return reply, nil
}

// domainOf reads and judges the configuration of a relay domain. What Apply
// would refuse is refused here with better words.
func domainOf(p *adminpb.Domain) (fsm.Domain, error) {
	name, err := domainName("domain.name", p.GetName())
	if err != nil {
		return fsm.Domain{}, err
	}
	d := fsm.Domain{Name: name, MX: p.GetMx()}
	if d.MX == (len(p.GetTargets()) > 0) {
		return fsm.Domain{}, status.Error(codes.InvalidArgument, "domain: give either mx or targets")
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

// domainName reads a relay domain's name. ParseDomain refuses wildcards too.
func domainName(field, s string) (mail.Domain, error) {
	if s == "" {
		return "", status.Errorf(codes.InvalidArgument, "%s is missing", field)
	}
	d, err := mail.ParseDomain(s)
	if err != nil {
		return "", status.Errorf(codes.InvalidArgument, "%s: %s", field, text(err.Error()))
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
	if d.MX {
		return "MX"
	}
	all := make([]string, len(d.Targets))
	for i, t := range d.Targets {
		all[i] = addressOf(t)
	}
	return strings.Join(all, ",")
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
			Queued:       uint64(counts.Queued), Held: uint64(counts.Held),
			Leased: uint64(counts.Leased), Waiting: uint64(counts.Waiting),
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
