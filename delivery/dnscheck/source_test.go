package dnscheck

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// serveZone answers from records, signed all of them, over UDP on loopback.
func serveZone(t *testing.T, lines ...string) netip.AddrPort {
	t.Helper()
	data := map[string][]dns.RR{} // "name. TYPE"
	names := map[string]bool{}
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		key := rr.Header().Name + " " + dns.TypeToString[rr.Header().Rrtype]
		data[key], names[rr.Header().Name] = append(data[key], rr), true
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: packets, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(m)
		reply.AuthenticatedData = m.AuthenticatedData
		name := strings.ToLower(m.Question[0].Name)
		if alias := data[name+" CNAME"]; len(alias) > 0 {
			reply.Answer = append(reply.Answer, alias...)
			name = alias[0].(*dns.CNAME).Target
		}
		reply.Answer = append(reply.Answer, data[name+" "+dns.TypeToString[m.Question[0].Qtype]]...)
		if !names[name] {
			reply.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = server.Shutdown() })
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

// A street has an SMTP server at each address.
type street map[string]*deliverytest.Primary // "address:port"

func (s street) dial(_ context.Context, _, address string) (net.Conn, error) {
	p, ok := s[address]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	client, server := deliverytest.Pipe()
	go p.Serve(server)
	return client, nil
}

// node is a server that calls itself so.
func server(name string, c *tls.Certificate) *deliverytest.Primary {
	p := &deliverytest.Primary{Answer: func(stage, _ string) string {
		if stage == deliverytest.Banner {
			return "220 " + name + " ESMTP Holdfast"
		}
		return ""
	}}
	if c != nil {
		p.TLS = &tls.Config{Certificates: []tls.Certificate{*c}}
	}
	return p
}

// TestLookAndJudge goes all the way: a DNS server, SMTP servers that speak TLS, and a
// policy, with some things wrong, each of which must be found, and nothing else.
func TestLookAndJudge(t *testing.T) {
	public := deliverytest.NewAuthority(t, "public", now)
	issue := func(name string) *tls.Certificate {
		c := public.Issue(t, deliverytest.Certificate{Names: []string{name}})
		return &c
	}
	c1, c2 := issue("mx1.example.net"), issue("mx2.example.net")
	pin := tlspolicy.PinOf(c1.Leaf)
	resolver := serveZone(t,
		". 0 DNSKEY 257 3 13 AAAA",
		"example.org. 0 MX 10 mail.example.org.", "example.org. 0 MX 20 mx1.example.net.", "example.org. 0 MX 20 Backup.example.org.",
		"mail.example.org. 0 A 198.51.100.25",
		"backup.example.org. 0 CNAME mx2.example.net.",
		"_mta-sts.example.org. 0 TXT \"v=STSv1; id=1;\"",
		"mx1.example.net. 0 A 192.0.2.1", "mx1.example.net. 0 AAAA 2001:db8::1",
		"_25._tcp.mx1.example.net. 0 TLSA 3 1 1 "+pin.String(),
		"mx2.example.net. 0 A 192.0.2.2",
		"mx3.example.net. 0 A 192.0.2.3",
		"1.2.0.192.in-addr.arpa. 0 PTR mx1.example.net.",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 PTR mx1.example.net.",
		"2.2.0.192.in-addr.arpa. 0 PTR dsl-2.example.com.", "dsl-2.example.com. 0 A 203.0.113.2",
		"3.2.0.192.in-addr.arpa. 0 PTR mx3.example.net.",
	)
	servers := street{
		"192.0.2.1:25": server("mx1.example.net", c1), "[2001:db8::1]:25": server("MX1.example.net", c1),
		"192.0.2.2:25": server("mx2.example.net", c2), // at 192.0.2.3 nobody answers
	}
	asked := make(chan mail.Domain, 2)
	source := NewSource(Config{
		Resolver: route.NewDNS(route.DNSConfig{Servers: []netip.AddrPort{resolver}}),
		Policy: func(_ context.Context, d mail.Domain) (tlspolicy.STSPolicy, error) {
			asked <- d
			return tlspolicy.STSPolicy{Mode: tlspolicy.STSModeEnforce, MX: []string{"mail.example.org", "*.example.net"}, MaxAge: time.Hour}, nil
		},
		Dial: servers.dial, Hello: "mx1.example.net", Now: func() time.Time { return now }, Roots: public.Pool(),
	})
	var nodes []Node
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, Node{Name: fmt.Sprintf("mx%d", i), Host: fmt.Sprintf("mx%d.example.net", i), Addresses: []netip.Addr{addr(fmt.Sprintf("192.0.2.%d", i))}})
	}
	nodes[0].Addresses = append(nodes[0].Addresses, addr("2001:db8::1"))
	report := Judge(source.Look(t.Context(), nodes, []Domain{{Name: "example.org"}, {Name: "nowhere.test"}}))
	want := []string{
		"example.org warning mx: node mx3 is not listed",
		"example.org warning mx: node mx2 is listed as backup.example.org, and its certificate is not for that name",
		"example.org warning mx: node mx2 is listed as backup.example.org, which is a CNAME",
		"example.org error mta-sts: the policy (enforce) does not name backup.example.org",
		"nowhere.test error mx: nowhere.test does not exist in DNS",
		"mx2 warning ptr: 192.0.2.2 is called dsl-2.example.com, which does not lead back to it",
		"mx2 warning tlsa: no TLSA records, while mx1.example.net has some",
		"mx3 error smtp: nobody takes mail at 192.0.2.3, as seen from this host: dial tcp: connection refused",
		"mx3 warning tlsa: no TLSA records, while mx1.example.net has some",
	}
	got := problems(report)
	if len(got) != len(want) {
		t.Fatalf("got\n\t%s", strings.Join(got, "\n\t"))
	}
	for i := range got {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("got\n\t%s\nwant\n\t%s", got[i], want[i])
		}
	}
	if close(asked); len(asked) != 1 || <-asked != "example.org" {
		t.Error("the policy was asked for of another domain, or not at all")
	}
	for at, p := range servers {
		for _, line := range p.Lines() {
			if strings.HasPrefix(strings.ToUpper(line), "MAIL") {
				t.Errorf("mail at %s: %s", at, line)
			}
		}
	}
}

// A hanging resolver answers nothing until it is given up.
type hanging struct {
	now, most atomic.Int64
	mu        sync.Mutex
}

func (h *hanging) hang(ctx context.Context) error {
	n := h.now.Add(1)
	defer h.now.Add(-1)
	h.mu.Lock()
	h.most.Store(max(h.most.Load(), n))
	h.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (h *hanging) MX(ctx context.Context, _ string) ([]route.MX, error) { return nil, h.hang(ctx) }
func (h *hanging) Host(ctx context.Context, _ string) (route.Host, error) {
	return route.Host{}, h.hang(ctx)
}
func (h *hanging) Names(ctx context.Context, _ netip.Addr) ([]string, error) { return nil, h.hang(ctx) }
func (h *hanging) TXT(ctx context.Context, _ string) ([]string, error)       { return nil, h.hang(ctx) }
func (h *hanging) TLSARecords(ctx context.Context, _ string) ([]tlspolicy.TLSARecord, bool, error) {
	return nil, false, h.hang(ctx)
}
func (h *hanging) Validates(ctx context.Context) bool { return h.hang(ctx) == nil }

// Where nothing answers there is an end, no more than lookupsMax wait at a time, and
// nothing is called fine.
func TestLookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hanging
		var domains []Domain
		for i := range 100 {
			domains = append(domains, Domain{Name: mail.Domain(fmt.Sprintf("d%d.test", i))})
		}
		source := NewSource(Config{Resolver: &h, Now: time.Now})
		begun := time.Now()
		report := Judge(source.Look(t.Context(), []Node{{Name: "mx1", Host: "mx1.test"}}, domains))
		if h.most.Load() != lookupsMax {
			t.Errorf("%d lookups at the same time", h.most.Load())
		}
		// Two of each domain, two of the node, and one for the resolver.
		if took, most := time.Since(begun), (203/lookupsMax+1)*lookupTimeout; took > most {
			t.Errorf("took %s, at most %s", took, most)
		}
		if report.Count(Fine) != 0 || report.Count(Error) < 101 {
			t.Errorf("%d fine, %d errors", report.Count(Fine), report.Count(Error))
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begun = time.Now()
		if source.Look(ctx, nil, domains); time.Since(begun) != 0 {
			t.Error("interrupted, and went on")
		}
	})
}
