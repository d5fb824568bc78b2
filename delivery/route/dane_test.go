package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
)

// A resolver is a recursive one over zones that are signed, unsigned or broken.
type resolver struct {
	t    *testing.T
	data map[string][]dns.RR // "name TYPE"
	// bogus names are SERVFAIL, but to those who do not want them checked.
	bogus map[string]bool
	// unsigned names come without AD.
	unsigned map[string]bool
	failing  map[string]bool // "name TYPE": SERVFAIL to everybody
	blind    bool            // does not validate
	lax      bool            // says AD, and does not look

	mu    sync.Mutex
	asked []string // "name TYPE", where AD was asked for
}

// with adds records.
func (r *resolver) with(lines ...string) *resolver {
	for _, rr := range records(r.t, lines...) {
		key := strings.TrimSuffix(rr.Header().Name, ".") + " " + dns.TypeToString[rr.Header().Rrtype]
		r.data[key] = append(r.data[key], rr)
	}
	return r
}

func (r *resolver) answer(_ string, q dns.Question, reply *dns.Msg) {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	key := name + " " + dns.TypeToString[q.Qtype]
	if reply.AuthenticatedData {
		r.mu.Lock()
		r.asked = append(r.asked, key)
		r.mu.Unlock()
	}
	secure := reply.AuthenticatedData && !r.blind
	reply.AuthenticatedData = false
	if r.failing[key] {
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	at := name
	for range 10 {
		if r.bogus[at] && !r.blind && !r.lax && !reply.CheckingDisabled {
			reply.Rcode, reply.Answer = dns.RcodeServerFailure, nil
			return
		}
		secure = secure && !r.unsigned[at] && !r.bogus[at]
		found := r.data[at+" "+dns.TypeToString[q.Qtype]]
		reply.Answer = append(reply.Answer, found...)
		alias := r.data[at+" CNAME"]
		if len(found) > 0 || len(alias) == 0 {
			break
		}
		reply.Answer = append(reply.Answer, alias...)
		at = strings.TrimSuffix(alias[0].(*dns.CNAME).Target, ".")
	}
	exists := false
	for k := range r.data {
		exists = exists || strings.HasPrefix(k, at+" ")
	}
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	reply.AuthenticatedData = secure
}

func newResolver(t *testing.T) *resolver {
	r := &resolver{t: t, data: map[string][]dns.RR{}, bogus: map[string]bool{}, unsigned: map[string]bool{}, failing: map[string]bool{}}
	r.with(". 0 DNSKEY 257 3 13 AAAA", "dnssec-failed.org. 0 A 192.0.2.99")
	r.bogus["dnssec-failed.org"] = true
	return r
}

// questions are those for which AD was asked.
func (r *resolver) questions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

func (r *resolver) serve(t *testing.T) *server { return serveDNS(t, r.answer) }

func TestProve(t *testing.T) {
	good := newResolver(t)
	at := good.serve(t).at
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{at}})
	hop := Hop{Host: "a.test", Address: netip.MustParseAddrPort("192.0.2.1:25")}
	if got := d.TLSA(t.Context(), fsm.Domain{Name: "a.test"}, hop); got.Status != tlspolicy.TLSAUnknown || !errors.Is(got.Err, ErrNotProven) {
		t.Errorf("before the proof: %+v", got)
	}
	if servers, err := d.Prove(t.Context(), Proof{}); err != nil || !slices.Equal(servers, []string{at.String()}) {
		t.Fatalf("%v %v", servers, err)
	}
	if !slices.Equal(good.questions(), []string{" DNSKEY", "dnssec-failed.org A"}) {
		t.Errorf("asked %q", good.questions())
	}

	for name, row := range map[string]struct {
		change func(*resolver)
		p      Proof
		want   string
	}{
		"blind":          {func(r *resolver) { r.blind = true }, Proof{}, "without the AD bit"},
		"AD for all":     {func(r *resolver) { r.lax = true }, Proof{}, "does not validate: it gives 1 records"},
		"no root":        {func(r *resolver) { delete(r.data, " DNSKEY") }, Proof{}, "no records"},
		"root fails":     {func(r *resolver) { r.failing[" DNSKEY"] = true }, Proof{}, "SERVFAIL"},
		"cut off":        {func(r *resolver) { r.failing["dnssec-failed.org A"] = true }, Proof{}, "unexamined: server says SERVFAIL"},
		"broken is gone": {func(r *resolver) { delete(r.data, "dnssec-failed.org A"); delete(r.bogus, "dnssec-failed.org") }, Proof{}, "gives 0 records"},
		"other names":    {nil, Proof{Signed: "signed.test", Broken: "broken.test"}, "DNSKEY of signed.test"},
	} {
		r := newResolver(t)
		if row.change != nil {
			row.change(r)
		}
		d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}})
		servers, err := d.Prove(t.Context(), row.p)
		if len(servers) != 0 || err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v %v", name, servers, err)
		}
		if got := d.TLSA(t.Context(), fsm.Domain{Name: "a.test"}, hop); got.Status != tlspolicy.TLSAUnknown {
			t.Errorf("%s: %+v", name, got)
		}
	}
	named := newResolver(t).with("signed.test. 0 DNSKEY 257 3 13 AAAA", "broken.test. 0 A 192.0.2.1")
	named.bogus["broken.test"] = true
	d = NewDNS(DNSConfig{Servers: []netip.AddrPort{named.serve(t).at}})
	if servers, err := d.Prove(t.Context(), Proof{Signed: "signed.test", Broken: "broken.test"}); err != nil || len(servers) != 1 {
		t.Errorf("names of one's own: %v %v", servers, err)
	}
}

// Of several resolvers only those that validate are asked, whatever the order,
// and one that is lost later is not replaced by one that was not proven.
func TestProveEachResolver(t *testing.T) {
	blind, good := newResolver(t), newResolver(t)
	blind.blind = true
	for _, r := range []*resolver{blind, good} {
		r.with("a.test. 0 A 192.0.2.1", "_25._tcp.a.test. 0 TLSA 3 1 1 "+strings.Repeat("ab", 32))
	}
	blindAt, goodAt := blind.serve(t).at, good.serve(t).at
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{blindAt, goodAt}})
	servers, err := d.Prove(t.Context(), Proof{})
	if !slices.Equal(servers, []string{goodAt.String()}) || err == nil || !strings.Contains(err.Error(), blindAt.String()) {
		t.Fatalf("%v %v", servers, err)
	}
	before := len(blind.questions())
	hop := Hop{Host: "a.test", Address: netip.MustParseAddrPort("192.0.2.1:25")}
	if got := d.TLSA(t.Context(), fsm.Domain{Name: "a.test"}, hop); got.Status != tlspolicy.TLSAFound || len(blind.questions()) != before {
		t.Errorf("%+v, %d questions to the other", got, len(blind.questions())-before)
	}

	// resolv.conf changes under our feet.
	write := func(at netip.AddrPort) {
		text := fmt.Sprintf("nameserver %s\n", at.Addr())
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(goodAt)
	d = NewDNS(DNSConfig{ResolvConf: conf, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		to := map[string]netip.AddrPort{"127.0.0.1:53": goodAt, "127.0.0.2:53": blindAt}[address]
		return new(net.Dialer).DialContext(ctx, network, to.String())
	}})
	if servers, err := d.Prove(t.Context(), Proof{}); err != nil || len(servers) != 1 {
		t.Fatalf("%v %v", servers, err)
	}
	if got := d.TLSA(t.Context(), fsm.Domain{Name: "a.test"}, hop); got.Status != tlspolicy.TLSAFound {
		t.Errorf("%+v", got)
	}
	write(netip.MustParseAddrPort("127.0.0.2:53"))
	if got := d.TLSA(t.Context(), fsm.Domain{Name: "a.test"}, hop); !errors.Is(got.Err, ErrNotProven) {
		t.Errorf("another resolver: %+v", got)
	}
}

// A resolver elsewhere is believed only where the operator says that nobody is
// between.
func TestProveElsewhere(t *testing.T) {
	at := newResolver(t).serve(t).at
	for _, trust := range []bool{false, true} {
		d := NewDNS(DNSConfig{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, TrustPath: trust,
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, at.String())
			},
		})
		servers, err := d.Prove(t.Context(), Proof{})
		if trust && (err != nil || len(servers) != 1) || !trust && (!errors.Is(err, errElsewhere) || len(servers) != 0) {
			t.Errorf("trust %v: %v %v", trust, servers, err)
		}
	}
}

func TestRFC7672Lookups(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	type row struct {
		name   string
		lines  []string
		change func(*resolver)
		direct bool // the host was configured
		host   string
		port   uint16
		want   string // "none", "unknown: ..." or "base: names"
		not    string // a question that must not be asked
	}
	signed := []string{
		"example.test. 0 MX 10 mx.host.test.", "mx.host.test. 0 A 192.0.2.1", "mx.host.test. 0 AAAA 2001:db8::1",
		"_25._tcp.mx.host.test. 0 TLSA 3 1 1 " + digest,
	}
	alias := []string{
		"example.test. 0 MX 10 mx.host.test.", "mx.host.test. 0 CNAME real.other.test.", "real.other.test. 0 A 192.0.2.1",
		"_25._tcp.mx.host.test. 0 TLSA 3 1 1 " + digest,
	}
	aliasBoth := append(slices.Clone(alias), "_25._tcp.real.other.test. 0 TLSA 3 1 1 "+digest)
	unsigned := func(names ...string) func(*resolver) {
		return func(r *resolver) {
			for _, n := range names {
				r.unsigned[n] = true
			}
		}
	}
	bogus := func(names ...string) func(*resolver) {
		return func(r *resolver) {
			for _, n := range names {
				r.bogus[n] = true
			}
		}
	}
	failing := func(keys ...string) func(*resolver) {
		return func(r *resolver) {
			for _, k := range keys {
				r.failing[k] = true
			}
		}
	}
	for _, c := range []row{
		{name: "all signed", lines: signed, want: "mx.host.test: mx.host.test example.test"},
		{name: "upper case and a dot", lines: signed, host: "MX.host.test.", want: "mx.host.test: mx.host.test example.test"},
		{name: "MX unsigned", lines: signed, change: unsigned("example.test"), want: "none", not: "_25._tcp.mx.host.test TLSA"},
		{name: "MX bogus", lines: signed, change: bogus("example.test"), want: "unknown: "},
		{name: "MX fails", lines: signed, change: failing("example.test MX"), want: "unknown: "},
		{name: "MX names others", lines: signed, host: "attacker.test", want: "unknown: the signed MX records"},
		{name: "no such domain", lines: signed[1:], want: "unknown: "},
		{name: "implicit MX", lines: []string{"example.test. 0 A 192.0.2.1", "_25._tcp.example.test. 0 TLSA 3 1 1 " + digest}, host: "example.test", want: "example.test: example.test example.test"},
		{name: "implicit MX, another host", lines: append([]string{"example.test. 0 A 192.0.2.1"}, signed[1:]...), want: "unknown: the signed MX records"},
		{name: "host unsigned", lines: signed, change: unsigned("mx.host.test"), want: "none", not: "_25._tcp.mx.host.test TLSA"},
		{name: "host bogus", lines: signed, change: bogus("mx.host.test"), want: "unknown: "},
		{name: "A fails", lines: signed, change: failing("mx.host.test A"), want: "mx.host.test: mx.host.test example.test"},
		{name: "addresses fail", lines: signed, change: failing("mx.host.test A", "mx.host.test AAAA"), want: "unknown: "},
		{name: "IPv6 only", lines: slices.Delete(slices.Clone(signed), 1, 2), want: "mx.host.test: mx.host.test example.test"},
		{name: "no TLSA, name exists", lines: append(slices.Clone(signed[:3]), "_25._tcp.mx.host.test. 0 TXT x"), want: "none"},
		{name: "no TLSA, no name", lines: signed[:3], want: "none"},
		{name: "TLSA unsigned", lines: signed, change: unsigned("_25._tcp.mx.host.test"), want: "none"},
		{name: "TLSA bogus", lines: signed, change: bogus("_25._tcp.mx.host.test"), want: "unknown: "},
		{name: "TLSA fails", lines: signed, change: failing("_25._tcp.mx.host.test TLSA"), want: "unknown: "},
		{name: "TLSA by CNAME", lines: append(slices.Clone(signed[:3]), "_25._tcp.mx.host.test. 0 CNAME tlsa.host.test.", "tlsa.host.test. 0 TLSA 3 1 1 "+digest), want: "mx.host.test: mx.host.test example.test"},
		{name: "TLSA by CNAME to an unsigned zone", lines: append(slices.Clone(signed[:3]), "_25._tcp.mx.host.test. 0 CNAME tlsa.host.test.", "tlsa.host.test. 0 TLSA 3 1 1 "+digest), change: unsigned("tlsa.host.test"), want: "none"},
		// Sections 2.2.2 and 2.2.3.
		{name: "alias, both have some", lines: aliasBoth, want: "real.other.test: mx.host.test example.test real.other.test"},
		{name: "alias, its own", lines: alias, want: "mx.host.test: mx.host.test example.test"},
		{name: "alias to an unsigned zone", lines: aliasBoth, change: unsigned("real.other.test"), want: "mx.host.test: mx.host.test example.test", not: "_25._tcp.real.other.test TLSA"},
		{name: "unsigned alias", lines: aliasBoth, change: unsigned("mx.host.test"), want: "none", not: "_25._tcp.mx.host.test TLSA"},
		{name: "alias, the end's are bogus", lines: aliasBoth, change: bogus("_25._tcp.real.other.test"), want: "unknown: "},
		// A configured host needs no MX to vouch for it.
		{name: "configured", lines: signed[1:], direct: true, want: "mx.host.test: mx.host.test"},
		{name: "configured, another port", lines: append(slices.Clone(signed[1:3]), "_2500._tcp.mx.host.test. 0 TLSA 3 1 1 "+digest), direct: true, port: 2500, want: "mx.host.test: mx.host.test"},
		{name: "configured, TLSA of another port", lines: signed[1:], direct: true, port: 2500, want: "none"},
		{name: "configured, unsigned", lines: signed[1:], direct: true, change: unsigned("mx.host.test"), want: "none"},
		{name: "configured address", direct: true, host: "192.0.2.1", want: "unknown: 192.0.2.1 is an address"},
		{name: "configured address in brackets", direct: true, host: "[2001:db8::1]", want: "unknown: [2001:db8::1] is an address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResolver(t).with(c.lines...)
			if c.change != nil {
				c.change(r)
			}
			d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}})
			if _, err := d.Prove(t.Context(), Proof{}); err != nil {
				t.Fatal(err)
			}
			if c.host == "" {
				c.host = "mx.host.test"
			}
			if c.port == 0 {
				c.port = 25
			}
			hop := Hop{Host: c.host, Address: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), c.port)}
			got := d.TLSA(t.Context(), fsm.Domain{Name: "example.test", MX: !c.direct}, hop)
			text := "none"
			switch got.Status {
			case tlspolicy.TLSAUnknown:
				text = fmt.Sprintf("unknown: %v", got.Err)
			case tlspolicy.TLSAFound:
				text = got.Base + ": " + strings.Join(got.Names, " ")
				if len(got.Records) != 1 || got.Records[0].Usage != 3 || got.Records[0].Selector != 1 || got.Records[0].Matching != 1 || len(got.Records[0].Data) != 32 {
					t.Errorf("records: %+v", got.Records)
				}
			}
			if text != c.want && !(strings.HasPrefix(c.want, "unknown: ") && strings.HasPrefix(text, c.want)) {
				t.Errorf("%s, want %s", text, c.want)
			}
			if c.not != "" && slices.Contains(r.questions(), c.not) {
				t.Errorf("asked for %s", c.not)
			}
		})
	}
}

func TestTXT(t *testing.T) {
	r := newResolver(t).with("a.test. 0 TXT \"v=STSv1; \" \"id=1;\"", "a.test. 0 TXT other", "b.test. 0 A 192.0.2.1")
	r.failing["c.test TXT"] = true
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}})
	if got, err := d.TXT(t.Context(), "a.test"); err != nil || !slices.Equal(got, []string{"v=STSv1; id=1;", "other"}) {
		t.Errorf("%q %v", got, err)
	}
	for _, name := range []string{"b.test", "nowhere.test"} {
		if got, err := d.TXT(t.Context(), name); err != nil || len(got) != 0 {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if got, err := d.TXT(t.Context(), "c.test"); err == nil {
		t.Errorf("SERVFAIL: %q", got)
	}
}
