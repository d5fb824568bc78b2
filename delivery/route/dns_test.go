package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func mailDomain(s string) mail.Domain { return mail.Domain(s) }

// A server answers on loopback, over UDP and TCP.
type server struct {
	at       netip.AddrPort
	udp, tcp atomic.Int64
}

func serveDNS(t *testing.T, answer func(network string, q dns.Question, reply *dns.Msg)) *server {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := packets.LocalAddr().String()
	streams, err := net.Listen("tcp", at)
	if err != nil {
		t.Skipf("TCP port of the UDP port is taken: %v", err)
	}
	s := &server{at: netip.MustParseAddrPort(at)}
	handler := func(network string, count *atomic.Int64) dns.HandlerFunc {
		return func(w dns.ResponseWriter, m *dns.Msg) {
			count.Add(1)
			reply := new(dns.Msg)
			reply.SetReply(m)
			reply.AuthenticatedData = m.AuthenticatedData // for answer to take back
			answer(network, m.Question[0], reply)
			_ = w.WriteMsg(reply)
		}
	}
	for _, d := range []*dns.Server{
		{PacketConn: packets, Handler: handler("udp", &s.udp)},
		{Listener: streams, Handler: handler("tcp", &s.tcp)},
	} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() { _ = d.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = d.Shutdown() })
	}
	return s
}

func records(t *testing.T, lines ...string) []dns.RR {
	t.Helper()
	var out []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr)
	}
	return out
}

func TestDNS(t *testing.T) {
	data := map[string][]dns.RR{
		"mx MX":       records(t, "mx. 0 MX 10 Primary.Test.", "mx. 0 MX 20 mx1.backup.test."),
		"null MX":     records(t, "null. 0 MX 0 ."),
		"a A":         records(t, "a. 0 A 198.51.100.1"),
		"a AAAA":      records(t, "a. 0 AAAA 2001:db8::1"),
		"alias A":     records(t, "alias. 0 CNAME Hop.", "hop. 0 CNAME a.", "a. 0 A 198.51.100.1"),
		"cut A":       records(t, "cut. 0 CNAME a."), // the rest must be asked for
		"circle A":    records(t, "circle. 0 CNAME circle2.", "circle2. 0 CNAME circle."),
		"circle AAAA": records(t, "circle. 0 CNAME circle2.", "circle2. 0 CNAME circle."),
		"foreign A":   records(t, "other. 0 A 203.0.113.66"), // not what was asked
		"half A":      records(t, "half. 0 A 198.51.100.2"),
	}
	for i := range 300 {
		data["long MX"] = append(data["long MX"], records(t, fmt.Sprintf("long. 0 MX %d host-%d.example.test.", i, i))...)
	}
	s := serveDNS(t, func(network string, q dns.Question, reply *dns.Msg) {
		name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
		key := name + " " + dns.TypeToString[q.Qtype]
		switch {
		case name == "nx":
			reply.Rcode = dns.RcodeNameError
		case name == "dangling":
			reply.Answer = records(t, "dangling. 0 CNAME nowhere.")
			reply.Rcode = dns.RcodeNameError
		case name == "servfail" || key == "half AAAA":
			reply.Rcode = dns.RcodeServerFailure
		case name == "refused":
			reply.Rcode = dns.RcodeRefused
		case name == "liar":
			reply.Question[0].Name = "someone.else."
			reply.Answer = records(t, "liar. 0 A 203.0.113.66")
		case name == "endless" && network == "tcp", name == "long" && network == "udp", name == "endless":
			reply.Truncated = true
		default:
			reply.Answer = data[key]
		}
	})
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{s.at}})

	if mx, err := d.MX(t.Context(), "mx"); err != nil || len(mx) != 2 || mx[0] != (MX{10, "primary.test"}) {
		t.Errorf("mx: %v %v", mx, err)
	}
	if mx, err := d.MX(t.Context(), "null"); err != nil || len(mx) != 1 || mx[0] != (MX{0, ""}) {
		t.Errorf("null MX: %v %v", mx, err)
	}
	if mx, err := d.MX(t.Context(), "a"); err != nil || len(mx) != 0 {
		t.Errorf("no data: %v %v", mx, err)
	}
	before := s.tcp.Load()
	if mx, err := d.MX(t.Context(), "long"); err != nil || len(mx) != 300 || s.tcp.Load() == before {
		t.Errorf("truncated over UDP: %d records, %v", len(mx), err)
	}
	for name, want := range map[string]string{
		"a": "[198.51.100.1 2001:db8::1]", "alias": "[198.51.100.1]", "cut": "[198.51.100.1]",
		"half": "[198.51.100.2]", "localhost": "[127.0.0.1 ::1]", "foreign": "[]",
	} {
		if got, err := d.Addresses(t.Context(), name); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	for name, want := range map[string]error{
		"nx": ErrNotFound, "dangling": ErrNotFound, "circle": errCNAMEs, "liar": errMismatch, "servfail": nil, "refused": nil, "endless": nil,
	} {
		got, err := d.Addresses(t.Context(), name)
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

// A server that fails is passed over; that is how a resolver list is meant.
func TestDNSAsksTheNextServer(t *testing.T) {
	bad := serveDNS(t, func(_ string, _ dns.Question, r *dns.Msg) { r.Rcode = dns.RcodeServerFailure })
	good := serveDNS(t, func(_ string, q dns.Question, r *dns.Msg) {
		if q.Qtype == dns.TypeMX {
			r.Answer = records(t, "example.test. 0 MX 10 primary.test.", "example.test. 0 MX 20 mx1.backup.test.")
		} else if q.Qtype == dns.TypeA {
			r.Answer = records(t, q.Name+" 0 A 198.51.100.1")
		}
	})
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{bad.at, good.at}})
	hops, err := New(Config{Resolver: d, Self: self}).Route(t.Context(), fsm.Domain{Name: "example.test", MX: true})
	if err != nil || text(hops) != "primary.test[198.51.100.1:25]" || bad.udp.Load() == 0 {
		t.Fatalf("%v %v", hops, err)
	}
}
