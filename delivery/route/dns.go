package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The bounds of one lookup.
const (
	dnsRounds       = 2 // times that each server is asked
	dnsServersMax   = 4
	dnsQueryTimeout = 3 * time.Second
	dnsTotalTimeout = 20 * time.Second
	cnamesMax       = 8
	// udpBytes is what fits through nearly every path unfragmented (DNS flag day
	// 2020); what is larger comes over TCP.
	udpBytes = 1232
)

var (
	errCNAMEs   = errors.New("too many CNAMEs, or a circle of them")
	errMismatch = errors.New("answer to another question")
)

// DNSConfig is what a DNS is made of.
type DNSConfig struct {
	// Servers are recursive resolvers, asked in order. None means those of
	// ResolvConf, read again at each lookup.
	Servers []netip.AddrPort
	// ResolvConf is /etc/resolv.conf if empty.
	ResolvConf string
	// TrustPath says that nobody between this host and the resolvers can change
	// what they say. Without it only a resolver on this host can be proven to
	// validate (see Prove).
	TrustPath bool
	// Dial is net.Dialer's if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// DNS is a Resolver that asks recursive resolvers: UDP first, TCP when the
// answer is truncated. It is safe for concurrent use.
type DNS struct {
	c      DNSConfig
	proven proven
}

// NewDNS returns a DNS.
func NewDNS(c DNSConfig) *DNS {
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	return &DNS{c: c}
}

// MX implements Resolver.
func (d *DNS) MX(ctx context.Context, name string) ([]MX, error) {
	records, err := d.lookup(ctx, name, dns.TypeMX)
	if err != nil {
		return nil, err
	}
	return mxOf(records), nil
}

func mxOf(records []dns.RR) []MX {
	var out []MX
	for _, rr := range records {
		if m, ok := rr.(*dns.MX); ok {
			out = append(out, MX{Preference: m.Preference, Host: strings.ToLower(strings.TrimSuffix(m.Mx, "."))})
		}
	}
	return out
}

// Addresses implements Resolver. One family is enough: if the other one's
// lookup fails, what was found is returned.
func (d *DNS) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761 section 6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	var out []netip.Addr
	v4, err4 := d.lookup(ctx, host, dns.TypeA)
	for _, rr := range v4 {
		if a, ok := rr.(*dns.A); ok {
			if ip, ok := netip.AddrFromSlice(a.A); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	v6, err6 := d.lookup(ctx, host, dns.TypeAAAA)
	for _, rr := range v6 {
		if a, ok := rr.(*dns.AAAA); ok {
			if ip, ok := netip.AddrFromSlice(a.AAAA); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, errors.Join(err4, err6)
}

// lookup returns the records of a type at name, or at what its CNAMEs lead to.
func (d *DNS) lookup(ctx context.Context, name string, kind uint16) ([]dns.RR, error) {
	found, err := d.find(ctx, name, kind, plain)
	return found.records, err
}

// A trust is how a question is asked.
type trust uint8

const (
	plain      trust = iota // anybody, for what is there
	validated               // resolvers that were proven to validate, for what is there and whether DNSSEC vouches for it
	unexamined              // for what is there, though it may be bogus (RFC 4035 section 3.2.2)
	claimed                 // anybody, for what is there and whether it says that DNSSEC vouches for it: nothing may rest on that
)

// A finding is what a lookup led to.
type finding struct {
	records []dns.RR // none where the name has none of the type
	name    string   // where they stand, without the trailing dot
	alias   bool     // name is not the one that was asked for
	secure  bool     // DNSSEC vouches for all of it, the CNAMEs included; only for trust validated and claimed
}

// find looks up the records of a type at name, or at what its CNAMEs lead to. A
// recursive resolver sends the chain along; where it stops short, we go on.
func (d *DNS) find(ctx context.Context, name string, kind uint16, how trust) (finding, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTotalTimeout)
	defer cancel()
	asked := dns.CanonicalName(name)
	if _, ok := dns.IsDomainName(asked); !ok {
		return finding{}, fmt.Errorf("look up %q: not a name", name)
	}
	at := asked
	secure := how == validated || how == claimed
	result := func(records []dns.RR) finding {
		return finding{records: records, name: strings.TrimSuffix(at, "."), alias: at != asked, secure: secure}
	}
	cnames := 0
	for {
		answer, err := d.ask(ctx, at, kind, how)
		if err != nil {
			return finding{}, fmt.Errorf("look up %s %s: %w", dns.TypeToString[kind], at, err)
		}
		secure = secure && answer.AuthenticatedData
		start := at
		for {
			var found []dns.RR
			next := ""
			for _, rr := range answer.Answer {
				if dns.CanonicalName(rr.Header().Name) != at {
					continue
				}
				if rr.Header().Rrtype == kind {
					found = append(found, rr)
				} else if c, ok := rr.(*dns.CNAME); ok {
					next = dns.CanonicalName(c.Target)
				}
			}
			if len(found) > 0 {
				return result(found), nil
			}
			if next == "" {
				break
			}
			if cnames++; cnames > cnamesMax {
				return finding{}, fmt.Errorf("look up %s %s: %w", dns.TypeToString[kind], name, errCNAMEs)
			}
			at = next
		}
		if answer.Rcode == dns.RcodeNameError { // RFC 6604: of the chain's last name.
			return finding{}, fmt.Errorf("look up %s %s: %w", dns.TypeToString[kind], at, ErrNotFound)
		}
		if at == start {
			return result(nil), nil
		}
	}
}

// ask asks the servers in turn until one answers: success or NXDOMAIN. SERVFAIL
// and REFUSED are that server's trouble.
func (d *DNS) ask(ctx context.Context, name string, kind uint16, how trust) (*dns.Msg, error) {
	servers, err := d.servers()
	if err != nil {
		return nil, err
	}
	if how == validated {
		if servers = d.proven.among(servers); len(servers) == 0 {
			return nil, ErrNotProven
		}
	}
	var last error
	for range dnsRounds {
		for _, server := range servers {
			answer, err := d.askOne(ctx, server, name, kind, how)
			if err == nil {
				return answer, nil
			}
			last = fmt.Errorf("%s: %w", server, err)
			if ctx.Err() != nil {
				return nil, last
			}
		}
	}
	return nil, last
}

func (d *DNS) askOne(ctx context.Context, server, name string, kind uint16, how trust) (*dns.Msg, error) {
	answer, err := d.exchange(ctx, "udp", server, name, kind, how, true)
	if answer != nil && answer.Truncated {
		answer, err = d.exchange(ctx, "tcp", server, name, kind, how, true)
	} else if err == nil && answer.Rcode == dns.RcodeFormatError {
		// A server from before EDNS0 (RFC 6891 section 7).
		if answer, err = d.exchange(ctx, "udp", server, name, kind, how, false); answer != nil && answer.Truncated {
			answer, err = d.exchange(ctx, "tcp", server, name, kind, how, false)
		}
	}
	if err != nil {
		return nil, err
	}
	if answer.Truncated {
		return nil, errors.New("truncated over TCP")
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, rcodeError(answer.Rcode)
	}
	return answer, nil
}

// A rcodeError is an answer that says that there is none.
type rcodeError int

func (e rcodeError) Error() string { return "server says " + dns.RcodeToString[int(e)] }

// exchange asks one question once. A truncated answer may come with an error.
func (d *DNS) exchange(ctx context.Context, network, server, name string, kind uint16, how trust, edns bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsQueryTimeout)
	defer cancel()
	nc, err := d.c.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	question := new(dns.Msg)
	question.SetQuestion(name, kind)
	// RFC 6840 section 5.7: AD in the question asks for AD in the answer. Older
	// resolvers give it only with the DO bit.
	question.AuthenticatedData = how == validated || how == claimed
	question.CheckingDisabled = how == unexamined
	if edns {
		question.SetEdns0(udpBytes, how != plain)
	}
	client := dns.Client{ReadTimeout: dnsQueryTimeout, WriteTimeout: dnsQueryTimeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: nc})
	if answer == nil {
		return nil, err
	}
	// The library compares ids only; sixteen bits are soon guessed.
	if !answer.Response || len(answer.Question) != 1 || answer.Question[0].Qtype != kind ||
		answer.Question[0].Qclass != dns.ClassINET || dns.CanonicalName(answer.Question[0].Name) != name {
		return nil, errMismatch
	}
	if err != nil && !answer.Truncated {
		return nil, err
	}
	return answer, nil
}

// servers returns the resolvers to ask, as host:port.
func (d *DNS) servers() ([]string, error) {
	var out []string
	for _, s := range d.c.Servers {
		out = append(out, s.String())
	}
	if len(out) == 0 {
		conf, err := dns.ClientConfigFromFile(d.c.ResolvConf)
		if err != nil {
			return nil, fmt.Errorf("read resolvers: %w", err)
		}
		for _, s := range conf.Servers {
			out = append(out, net.JoinHostPort(s, conf.Port))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no resolver in %s", d.c.ResolvConf)
	}
	return out[:min(len(out), dnsServersMax)], nil
}
