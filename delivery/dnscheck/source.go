package dnscheck

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// What looking costs at most.
const (
	lookupsMax     = 16               // under way at the same time
	lookupTimeout  = 15 * time.Second // of each; of a conversation, too
	exchangersMax  = 24               // MX hosts of a domain whose addresses are looked up
	addressesMax   = 8                // of a node that are looked at
	pointersMax    = 8                // names of an address that are looked up
	smtpPort       = 25
	policyHostName = "mta-sts."
)

// A Resolver looks things up. *route.DNS is one. Names come without the trailing
// dot. Errors that wrap route.ErrNotFound mean that a name does not exist.
type Resolver interface {
	MX(ctx context.Context, name string) ([]route.MX, error)
	// Host returns what was found, also beside an error.
	Host(ctx context.Context, name string) (route.Host, error)
	// Names returns none where an address has none.
	Names(ctx context.Context, address netip.Addr) ([]string, error)
	// TXT and TLSARecords return none where a name has none or does not exist.
	TXT(ctx context.Context, name string) ([]string, error)
	TLSARecords(ctx context.Context, name string) (records []tlspolicy.TLSARecord, signed bool, err error)
	// Validates reports whether it tells what is signed.
	Validates(ctx context.Context) bool
}

// Config is what a Source is made of.
type Config struct {
	Resolver Resolver
	// Policy fetches the MTA-STS policy of a domain.
	Policy func(ctx context.Context, domain mail.Domain) (tlspolicy.STSPolicy, error)
	// Dial connects to a node's SMTP port.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Hello is the name to say EHLO with.
	Hello string
	Now   func() time.Time
	Roots *x509.CertPool // nil are the host's
}

// A Source looks at the world. It is safe for concurrent use.
type Source struct {
	c     Config
	slots *semaphore.Weighted
}

// NewSource returns a Source.
func NewSource(c Config) *Source {
	return &Source{c: c, slots: semaphore.NewWeighted(lookupsMax)}
}

// Look looks at all that Judge wants to know, until ctx ends: what was not seen by
// then carries ctx's error.
func (s *Source) Look(ctx context.Context, nodes []Node, domains []Domain) Facts {
	f := Facts{Now: s.c.Now(), Roots: s.c.Roots, Nodes: make([]NodeFacts, len(nodes)), Domains: make([]DomainFacts, len(domains))}
	var all sync.WaitGroup
	all.Go(func() {
		_ = s.once(ctx, func(ctx context.Context) error { f.Validates = s.c.Resolver.Validates(ctx); return nil })
	})
	for i, n := range nodes {
		all.Go(func() { f.Nodes[i] = s.node(ctx, n) })
	}
	for i, d := range domains {
		all.Go(func() { f.Domains[i] = s.domain(ctx, d, nodes) })
	}
	all.Wait()
	return f
}

// once runs one lookup when its turn comes.
func (s *Source) once(ctx context.Context, look func(context.Context) error) error {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.slots.Release(1)
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	return look(ctx)
}

func (s *Source) host(ctx context.Context, name string) Host {
	var h Host
	h.Err = s.once(ctx, func(ctx context.Context) (err error) {
		h.Host, err = s.c.Resolver.Host(ctx, name)
		return err
	})
	return h
}

func (s *Source) node(ctx context.Context, n Node) NodeFacts {
	f := NodeFacts{Node: n}
	if n.Host == "" {
		return f
	}
	f.DNS = s.host(ctx, n.Host)
	f.TLSA.Err = s.once(ctx, func(ctx context.Context) (err error) {
		f.TLSA.Records, f.TLSA.Signed, err = s.c.Resolver.TLSARecords(ctx, strings.TrimSuffix(tlsaName(n.Host), "."))
		return err
	})
	addresses := f.DNS.Addresses[:min(len(f.DNS.Addresses), addressesMax)]
	var outward []netip.Addr // of which others may ask the name
	for _, a := range slices.Concat(addresses, n.Addresses) {
		if public(a) && !slices.Contains(outward, a) {
			outward = append(outward, a)
		}
	}
	f.Ports, f.Pointers = make([]Port, len(addresses)), make([]Pointer, len(outward))
	var all sync.WaitGroup
	for i, a := range addresses {
		all.Go(func() { f.Ports[i] = s.port(ctx, n.Host, a) })
	}
	for i, a := range outward {
		all.Go(func() { f.Pointers[i] = s.pointer(ctx, a) })
	}
	all.Wait()
	return f
}

func (s *Source) pointer(ctx context.Context, a netip.Addr) Pointer {
	p := Pointer{Address: a}
	p.Err = s.once(ctx, func(ctx context.Context) (err error) {
		p.Names, err = s.c.Resolver.Names(ctx, a)
		return err
	})
	p.Names = p.Names[:min(len(p.Names), pointersMax)]
	for _, name := range p.Names {
		h := s.host(ctx, name)
		if slices.Contains(h.Addresses, a) {
			p.Confirmed = append(p.Confirmed, name)
		} else if h.Err != nil && !errors.Is(h.Err, route.ErrNotFound) {
			p.Err = errors.Join(p.Err, h.Err)
		}
	}
	if len(p.Confirmed) > 0 {
		p.Err = nil
	}
	return p
}

// port talks to a node twice: in the clear to hear its name, and then for its
// certificate, so that a handshake that fails does not hide the name.
func (s *Source) port(ctx context.Context, host string, a netip.Addr) Port {
	p := Port{Address: a}
	p.Err = s.talk(ctx, a, nil, func(c *smtpclient.Conn) { p.Name, p.StartTLS = c.Name(), c.Offers("STARTTLS") })
	if p.Err != nil || !p.StartTLS {
		return p
	}
	// Whatever it shows is judged later.
	p.Err = s.talk(ctx, a, &tls.Config{InsecureSkipVerify: true, ServerName: host}, func(c *smtpclient.Conn) { p.TLS = c.TLS() })
	return p
}

// talk opens a conversation, hands it to see, and ends it.
func (s *Source) talk(ctx context.Context, a netip.Addr, config *tls.Config, see func(*smtpclient.Conn)) error {
	return s.once(ctx, func(ctx context.Context) error {
		nc, err := s.c.Dial(ctx, "tcp", netip.AddrPortFrom(a, smtpPort).String())
		if err != nil {
			return err
		}
		c, err := smtpclient.Open(ctx, nc, smtpclient.Options{Hello: s.c.Hello, TLS: config})
		if err != nil {
			return err
		}
		see(c)
		_ = c.Quit(ctx) // nothing depends on it
		return nil
	})
}

func (s *Source) domain(ctx context.Context, d Domain, nodes []Node) DomainFacts {
	f := DomainFacts{Domain: d, Hosts: map[string]Host{}, TLSA: map[string]bool{}}
	f.MXErr = s.once(ctx, func(ctx context.Context) (err error) {
		f.MX, err = s.c.Resolver.MX(ctx, string(d.Name))
		return err
	})
	ours := func(name string) bool {
		return slices.ContainsFunc(nodes, func(n Node) bool { return strings.EqualFold(n.Host, name) })
	}
	var exchangers []string
	for _, m := range f.MX {
		if m.Host != "" && !ours(m.Host) && !slices.Contains(exchangers, m.Host) && len(exchangers) < exchangersMax {
			exchangers = append(exchangers, m.Host)
		}
	}
	for _, name := range exchangers {
		h := s.host(ctx, name)
		f.Hosts[name] = h
		if h.Signed && len(h.Addresses) > 0 {
			_ = s.once(ctx, func(ctx context.Context) error {
				records, signed, err := s.c.Resolver.TLSARecords(ctx, strings.TrimSuffix(tlsaName(name), "."))
				f.TLSA[name] = signed && len(records) > 0
				return err // It is the primary's affair.
			})
		}
	}
	for _, t := range d.Targets {
		if _, err := netip.ParseAddr(t); err == nil || ours(t) {
			continue
		}
		if _, known := f.Hosts[t]; !known {
			f.Hosts[t] = s.host(ctx, t)
		}
	}
	f.STS = s.sts(ctx, d.Name)
	return f
}

func (s *Source) sts(ctx context.Context, domain mail.Domain) STS {
	var f STS
	f.RecordsErr = s.once(ctx, func(ctx context.Context) (err error) {
		f.Records, err = s.c.Resolver.TXT(ctx, "_mta-sts."+string(domain))
		return err
	})
	id, err := tlspolicy.ParseSTSRecord(f.Records)
	if f.RecordsErr != nil || err != nil {
		return f
	}
	if id == "" && len(s.host(ctx, policyHostName+string(domain)).Addresses) == 0 {
		return f
	}
	f.Asked = true
	f.Err = s.once(ctx, func(ctx context.Context) (err error) {
		f.Policy, err = s.c.Policy(ctx, domain)
		return err
	})
	return f
}
