package route

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
)

// The bounds of one route. What is beyond them is not tried.
const (
	hopsMax      = 16  // addresses to try for one attempt
	mxHostsMax   = 24  // MX hosts whose addresses are looked up
	mxCountMax   = 512 // MX records looked at
	smtpPort     = 25
	addressesMax = 8 // of one host
)

var (
	// ErrNotFound: the name does not exist (NXDOMAIN).
	ErrNotFound = errors.New("no such name in DNS")
	// ErrNullMX: the domain says that it takes no mail (RFC 7505).
	ErrNullMX = errors.New("domain has a null MX")
	// ErrOnlyOurselves: every next hop is a cluster member, or no better than one.
	ErrOnlyOurselves = errors.New("no next hop but ourselves")
	// ErrNoAddress: there are names, and none of them has an address.
	ErrNoAddress = errors.New("no next hop has an address")
)

// An MX is one MX record. Host is lower case, without the trailing dot; "" is
// the root, which makes it a null MX.
type MX struct {
	Preference uint16
	Host       string
}

// A Resolver looks names up. A name that exists without such records gives an
// empty slice and no error; one that does not exist gives an error that wraps
// ErrNotFound; any other error means that it is not known.
type Resolver interface {
	MX(ctx context.Context, name string) ([]MX, error)
	Addresses(ctx context.Context, host string) ([]netip.Addr, error)
}

// Self is by what the cluster's members can be recognised, all of them, also
// behind address translation.
type Self struct {
	Names     []string     // host names, as MX records would have them
	Addresses []netip.Addr // the addresses of these names
	// Endpoints are where the members' SMTP listeners are. An explicit target is
	// ourselves only if it is one of these: on one host a primary may stand
	// beside a node on another port.
	Endpoints []netip.AddrPort
}

// A Hop is one address to try.
type Hop struct {
	Host    string // the name behind it, or the address itself: for TLS and for logs
	Address netip.AddrPort
}

// String returns host and address, for logs.
func (h Hop) String() string { return fmt.Sprintf("%s[%s]", h.Host, h.Address) }

// Config is what a Router is made of.
type Config struct {
	Resolver Resolver
	// Self is asked at each lookup, since members come and go. Nil knows no
	// members.
	Self func() Self
	// Shuffle brings n equal hosts into random order, as rand.Shuffle does. Nil
	// is rand.Shuffle. It is called concurrently.
	Shuffle func(n int, swap func(i, j int))
}

// A Router finds next hops. It is safe for concurrent use.
type Router struct{ c Config }

// New returns a Router.
func New(c Config) *Router {
	if c.Self == nil {
		c.Self = func() Self { return Self{} }
	}
	if c.Shuffle == nil {
		c.Shuffle = rand.Shuffle
	}
	return &Router{c}
}

// Route returns the next hops of d, best first. It is never empty without an
// error, and no error is a verdict on the mail.
func (r *Router) Route(ctx context.Context, d fsm.Domain) ([]Hop, error) {
	switch {
	case d.OnDemand:
		return nil, ErrNoAddress
	case d.MX:
		return r.byMX(ctx, string(d.Name))
	}
	return r.explicit(ctx, d.Targets)
}

// explicit looks up configured targets, in their order.
func (r *Router) explicit(ctx context.Context, targets []fsm.Target) ([]Hop, error) {
	self := r.c.Self()
	var hops []Hop
	var trouble error = ErrNoAddress
	for _, t := range targets {
		port := t.Port
		if port == 0 {
			port = smtpPort
		}
		addresses, err := r.addresses(ctx, t.Host)
		if err != nil {
			trouble = errors.Join(trouble, fmt.Errorf("target %s: %w", t.Host, err))
		}
		for _, a := range addresses {
			end := netip.AddrPortFrom(a, port)
			if slices.ContainsFunc(self.Endpoints, func(e netip.AddrPort) bool {
				return e.Port() == port && e.Addr().Unmap() == a
			}) {
				trouble = errors.Join(trouble, fmt.Errorf("target %s: %w", t.Host, ErrOnlyOurselves))
				continue
			}
			hops = append(hops, Hop{Host: t.Host, Address: end})
		}
	}
	if len(hops) == 0 {
		return nil, trouble
	}
	return hops[:min(len(hops), hopsMax)], nil
}

// byMX follows RFC 5321 section 5.1.
func (r *Router) byMX(ctx context.Context, domain string) ([]Hop, error) {
	records, err := r.c.Resolver.MX(ctx, domain)
	if err != nil {
		return nil, fmt.Errorf("MX of %s: %w", domain, err)
	}
	if len(records) == 0 { // The implicit MX.
		records = []MX{{Host: domain}}
	}
	records = slices.Clone(records[:min(len(records), mxCountMax)])
	if len(records) == 1 && records[0].Host == "" {
		return nil, fmt.Errorf("MX of %s: %w", domain, ErrNullMX)
	}
	records = slices.DeleteFunc(records, func(m MX) bool { return m.Host == "" })
	self := r.c.Self()
	// By name first: it costs no lookup and needs none to succeed.
	limit := 1 << 16
	for _, m := range records {
		if slices.ContainsFunc(self.Names, func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), m.Host) }) {
			limit = min(limit, int(m.Preference))
		}
	}
	before := len(records)
	records = slices.DeleteFunc(records, func(m MX) bool { return int(m.Preference) >= limit })
	r.c.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	slices.SortStableFunc(records, func(a, b MX) int { return int(a.Preference) - int(b.Preference) })
	if len(records) == 0 {
		if before == 0 {
			return nil, fmt.Errorf("MX of %s: %w", domain, ErrNoAddress)
		}
		return nil, fmt.Errorf("MX of %s: %w", domain, ErrOnlyOurselves)
	}
	return r.hosts(ctx, domain, records[:min(len(records), mxHostsMax)], self)
}

// hosts looks up the addresses of sorted MX hosts, one preference after the
// other, until one of them turns out to be a member: that preference and all
// behind it are dropped, also what had been found at the same preference.
//
// A host whose lookup fails is skipped. It might have been a member; but then
// its name would have been known, and to stop here would give up a second
// primary because the first one's zone is broken.
func (r *Router) hosts(ctx context.Context, domain string, records []MX, self Self) ([]Hop, error) {
	var hops []Hop
	var trouble error = ErrNoAddress
	for len(records) > 0 && len(hops) < hopsMax {
		preference := records[0].Preference
		var group []Hop
		for len(records) > 0 && records[0].Preference == preference {
			host := records[0].Host
			records = records[1:]
			addresses, err := r.addresses(ctx, host)
			if err != nil {
				trouble = errors.Join(trouble, fmt.Errorf("MX host %s: %w", host, err))
				continue
			}
			for _, a := range addresses {
				if slices.ContainsFunc(self.Addresses, func(m netip.Addr) bool { return m.Unmap() == a }) {
					if len(hops) == 0 {
						return nil, fmt.Errorf("MX of %s: %s is %s: %w", domain, host, a, ErrOnlyOurselves)
					}
					return hops[:min(len(hops), hopsMax)], nil
				}
				group = append(group, Hop{Host: host, Address: netip.AddrPortFrom(a, smtpPort)})
			}
		}
		hops = append(hops, group...)
	}
	if len(hops) == 0 {
		return nil, fmt.Errorf("MX of %s: %w", domain, trouble)
	}
	return hops[:min(len(hops), hopsMax)], nil
}

// addresses returns the addresses of a host, which may be an address itself,
// with or without brackets. IPv4 comes first: many backup hosts have an IPv6
// address without a way out, and waiting for that costs a connect timeout.
func (r *Router) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if a, err := netip.ParseAddr(bare); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	addresses, err := r.c.Resolver.Addresses(ctx, strings.ToLower(strings.TrimSuffix(host, ".")))
	if err != nil {
		return nil, err
	}
	out := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, a.Unmap())
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int {
		switch {
		case a.Is4() == b.Is4():
			return 0
		case a.Is4():
			return -1
		}
		return 1
	})
	return out[:min(len(out), addressesMax)], nil
}
