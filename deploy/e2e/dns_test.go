//go:build e2e

package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// zone is what the DNS server knows. Everything else does not exist.
const zone = `
example.test.          60 IN MX 10 primary.test.
example.test.          60 IN MX 20 node-1.holdfast.test.
example.test.          60 IN MX 20 node-2.holdfast.test.
example.test.          60 IN MX 20 node-3.holdfast.test.
example.org.           60 IN MX 10 primary.test.
example.org.           60 IN MX 20 node-1.holdfast.test.
example.org.           60 IN MX 20 node-2.holdfast.test.
example.org.           60 IN MX 20 node-3.holdfast.test.
primary.test.          60 IN A  127.0.0.20
node-1.holdfast.test.  60 IN A  127.0.0.11
node-2.holdfast.test.  60 IN A  127.0.0.12
node-3.holdfast.test.  60 IN A  127.0.0.13
sender.test.           60 IN A  127.0.0.10
`

// serveDNS answers from the zone over UDP and TCP.
func serveDNS(t *testing.T) {
	t.Helper()
	records := make(map[string][]dns.RR) // by lower-case name
	parser := dns.NewZoneParser(strings.NewReader(zone), ".", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := strings.ToLower(rr.Header().Name)
		records[name] = append(records[name], rr)
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		a.Authoritative, a.RecursionAvailable = true, true
		if len(q.Question) == 1 {
			known, ok := records[strings.ToLower(q.Question[0].Name)]
			if !ok {
				a.Rcode = dns.RcodeNameError
			}
			for _, rr := range known {
				if rr.Header().Rrtype == q.Question[0].Qtype {
					a.Answer = append(a.Answer, rr)
				}
			}
		}
		w.WriteMsg(a)
	})
	address := net.JoinHostPort(addressDNS, "53")
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatalf("listen for DNS: %v", err)
	}
	streams, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("listen for DNS: %v", err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
}
