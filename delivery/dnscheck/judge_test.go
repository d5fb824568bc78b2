package dnscheck

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// now is when the tests take place.
var now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

var errTimeout = errors.New("timeout")

// addr reads an address.
var addr = netip.MustParseAddr

// A fleet is three nodes that all is well with, and two domains: one whose mail
// goes to a target, and one whose mail goes by MX.
type fleet struct {
	t      *testing.T
	public *deliverytest.Authority
	facts  Facts
}

func newFleet(t *testing.T) *fleet {
	x := &fleet{t: t, public: deliverytest.NewAuthority(t, "public", now)}
	x.facts = Facts{Now: now, Roots: x.public.Pool(), Validates: true}
	for i := 1; i <= 3; i++ {
		host, a := fmt.Sprintf("mx%d.example.net", i), addr(fmt.Sprintf("192.0.2.%d", i))
		s := x.session(deliverytest.Certificate{Names: []string{host}})
		x.facts.Nodes = append(x.facts.Nodes, NodeFacts{
			Node:     Node{Name: fmt.Sprintf("mx%d", i), Host: host, Addresses: []netip.Addr{a}},
			DNS:      Host{Host: route.Host{Addresses: []netip.Addr{a}, Signed: true}},
			Pointers: []Pointer{{Address: a, Names: []string{host}, Confirmed: []string{host}}},
			Ports:    []Port{{Address: a, Name: host, StartTLS: true, TLS: s}},
			TLSA:     TLSA{Signed: true, Records: []tlspolicy.TLSARecord{record311(s)}},
		})
	}
	behind := func(host string) []route.MX {
		return []route.MX{
			{Preference: 10, Host: host}, {Preference: 20, Host: "mx1.example.net"},
			{Preference: 20, Host: "mx2.example.net"}, {Preference: 20, Host: "mx3.example.net"},
		}
	}
	primary := Host{Host: route.Host{Addresses: []netip.Addr{addr("198.51.100.25")}, Signed: true}}
	x.facts.Domains = []DomainFacts{
		{
			Domain: Domain{Name: "example.org", Targets: []string{"mail.example.org"}}, MX: behind("mail.example.org"),
			Hosts: map[string]Host{"mail.example.org": primary}, TLSA: map[string]bool{"mail.example.org": true},
			STS: STS{
				Records: []string{"v=STSv1; id=1;"}, Asked: true,
				Policy: tlspolicy.STSPolicy{Mode: tlspolicy.STSModeEnforce, MX: []string{"mail.example.org", "mx1.example.net", "mx2.example.net", "mx3.example.net"}, MaxAge: 86400 * time.Second},
			},
		},
		{
			Domain: Domain{Name: "example.com"}, MX: behind("mail.example.com"),
			Hosts: map[string]Host{"mail.example.com": primary}, TLSA: map[string]bool{},
		},
	}
	return x
}

// session is one with a certificate of the public authority.
func (x *fleet) session(of deliverytest.Certificate) *tls.ConnectionState {
	s := &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	for _, der := range x.public.Issue(x.t, of).Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			x.t.Fatal(err)
		}
		s.PeerCertificates = append(s.PeerCertificates, c)
	}
	return s
}

func record311(s *tls.ConnectionState) tlspolicy.TLSARecord {
	pin := tlspolicy.PinOf(s.PeerCertificates[0])
	return tlspolicy.TLSARecord{Usage: 3, Selector: 1, Matching: 1, Data: pin[:]}
}

// shows gives mx1 a certificate, and TLSA records that are of it.
func (x *fleet) shows(of deliverytest.Certificate) *tls.ConnectionState {
	s := x.session(of)
	n := &x.facts.Nodes[0]
	n.Ports[0].TLS, n.TLSA.Records = s, []tlspolicy.TLSARecord{record311(s)}
	return s
}

// underOwn gives mx1 a certificate, and a TLSA record that is of its authority.
func (x *fleet) underOwn(of deliverytest.Certificate) {
	s := x.shows(of)
	authority := x.public.Cert
	s.PeerCertificates = append(s.PeerCertificates[:1], authority)
	x.facts.Nodes[0].TLSA.Records = []tlspolicy.TLSARecord{{Usage: 2, Selector: 0, Matching: 0, Data: authority.Raw}}
}

// plain takes all TLSA records and policies away.
func (x *fleet) plain() {
	for i := range x.facts.Nodes {
		x.facts.Nodes[i].TLSA = TLSA{}
	}
	for i := range x.facts.Domains {
		x.facts.Domains[i].TLSA = map[string]bool{}
		x.facts.Domains[i].STS = STS{}
	}
}

// problems are what is not fine: the level, the check and the text, and the records
// behind a + or a -.
func problems(r Report) []string {
	var out []string
	add := func(who string, findings []Finding) {
		for _, f := range findings {
			if f.Level == Fine {
				continue
			}
			line := fmt.Sprintf("%s %s %s: %s", who, f.Level, f.Check, f.Text)
			for _, record := range f.Records {
				sign := " +"
				if record.Remove {
					sign = " -"
				}
				line += sign + strings.ReplaceAll(record.String(), " 3600 IN", "")
			}
			out = append(out, line)
		}
	}
	for _, d := range r.Domains {
		add(string(d.Name), d.Findings)
	}
	for _, n := range r.Nodes {
		add(n.Name, n.Findings)
	}
	return out
}

func TestAllFine(t *testing.T) {
	x := newFleet(t)
	r := Judge(x.facts)
	if p := problems(r); len(p) > 0 || len(r.Records()) > 0 {
		t.Errorf("%s", strings.Join(p, "\n"))
	}
	for _, d := range r.Domains {
		if len(d.Findings) != 2 {
			t.Errorf("%+v", d)
		}
	}
	for _, n := range r.Nodes {
		if len(n.Findings) != 5 { // one of each check
			t.Errorf("%+v", n)
		}
	}
	x.plain()
	if p := problems(Judge(x.facts)); len(p) > 0 {
		t.Errorf("without DANE and MTA-STS: %s", strings.Join(p, "\n"))
	}
}

// TestEachThingWrong takes what is well, makes one thing wrong, and wants to hear of
// that and of nothing else. A row's lines are parts of the problems, in order.
func TestEachThingWrong(t *testing.T) {
	reset := &smtpclient.StageError{Stage: smtpclient.StageBanner, Err: syscall.ECONNRESET}
	rows := []struct {
		name   string
		change func(x *fleet, n *NodeFacts, org, com *DomainFacts)
		want   []string
	}{
		// MX.
		{"no such domain", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX, org.MXErr = nil, fmt.Errorf("look up: %w", route.ErrNotFound)
		}, []string{"example.org error mx: example.org does not exist in DNS +example.org. MX 10 mail.example.org. +example.org. MX 20 mx1.example.net. +example.org. MX 20 mx2.example.net. +example.org. MX 20 mx3.example.net."}},
		{"MX fail", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX, org.MXErr = nil, errTimeout }, []string{"example.org error mx: the MX records of example.org could not be looked up: timeout"}},
		{"no MX", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { com.MX = nil }, []string{"example.com error mx: no MX records: senders go to the addresses of example.com itself, and never to the cluster +example.com. MX 10 example.com. +example.com. MX 20 mx1.example.net."}},
		{"no MX, the target an address", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX, org.Targets = nil, []string{"10.0.0.1"} }, []string{"example.org error mx: no MX records: senders go to the addresses of example.org itself, and never to the cluster +example.org. MX 20 mx1.example.net."}},
		{"null MX", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX = []route.MX{{}} }, []string{"example.org error mx: a null MX record (RFC 7505): the domain says that it takes no mail, and senders return it -example.org. MX 0 . +example.org. MX 10 mail.example.org."}},
		{"null MX beside others", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX = append(org.MX, route.MX{}) }, []string{"example.org error mx: a null MX record beside others (RFC 7505 section 3): some senders return mail for the domain -example.org. MX 0 ."}},
		{"no node", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX = org.MX[:1] }, []string{"example.org error mx: no node is listed: senders never come to the cluster +example.org. MX 20 mx1.example.net. +example.org. MX 20 mx2.example.net. +example.org. MX 20 mx3.example.net."}},
		{"no node, and the worst preference", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX = []route.MX{{Preference: 65530, Host: "mail.example.org"}}
		}, []string{"never come to the cluster +example.org. MX 65535 mx1.example.net."}},
		{"a node is missing", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX = org.MX[:3] }, []string{"example.org warning mx: node mx3 is not listed +example.org. MX 20 mx3.example.net."}},
		{"a fourth node is missing", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			n := x.facts.Nodes[2]
			n.Name, n.Host = "mx4", "mx4.example.net"
			n.Addresses, n.Pointers, n.Ports = nil, nil, nil
			n.DNS.Addresses = []netip.Addr{addr("192.0.2.4")}
			n.TLSA = TLSA{Signed: true, Records: n.TLSA.Records}
			org.STS.Policy.MX = append(org.STS.Policy.MX, "*.example.net")
			x.facts.Nodes = append(x.facts.Nodes, n)
		}, []string{"mx4 warning tlsa: the records at _25._tcp.mx4.example.net could not be compared"}},
		{"unequal", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX[1].Preference = 15 }, []string{"example.org warning mx: the nodes are listed at unequal preferences, from 15 to 20: senders all go to the same one +example.org. MX 20 mx1.example.net. -example.org. MX 15 mx1.example.net."}},
		{"before the primary", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX[0].Preference = 30 }, []string{"example.org warning mx: nothing is listed that is better than the nodes (at 20): senders come to the cluster while the primary is up +example.org. MX 40 mx1.example.net. -example.org. MX 20 mx1.example.net."}},
		{"equal to the primary, by MX", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { com.MX[0].Preference = 20 }, []string{"example.com error mx: nothing is listed that is better than the nodes (at 20), and the MX records are to say where the mail goes: what the cluster takes it can only hold; list the primary at a better preference, or name it with \"holdfast domain put example.com --to HOST\" +example.com. MX 30 mx1.example.net."}},
		{"the nodes alone", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.MX = org.MX[1:] }, []string{"example.org warning mx: the nodes alone are listed, and no primary: all mail comes through the cluster"}},
		{"the nodes alone, on demand", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX, org.Targets, org.OnDemand = org.MX[1:], nil, true
		}, nil},
		{"no MX, on demand", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { com.MX, com.OnDemand = nil, true }, []string{"example.com error mx: no MX records: senders go to the addresses of example.com itself, and never to the cluster +example.com. MX 20 mx1.example.net."}},
		{"the nodes alone, by MX", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { com.MX = com.MX[1:] }, []string{"example.com error mx: nothing is listed that is better"}},
		{"somebody else before them", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX = append(org.MX, route.MX{Preference: 15, Host: "mail.example.com"})
			org.Hosts["mail.example.com"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("203.0.113.9")}}}
			org.STS.Policy.MX = append(org.STS.Policy.MX, "mail.example.com")
		}, []string{"example.org warning mx: mail.example.com (at 15) is neither the primary nor a node, and senders go there first"}},
		{"somebody else, and the target is not in DNS", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.Targets = []string{"10.0.0.1"}
			org.MX = append(org.MX, route.MX{Preference: 15, Host: "mail.example.com"})
			org.Hosts["mail.example.com"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("203.0.113.9")}}}
			org.STS.Policy.MX = append(org.STS.Policy.MX, "mail.example.com")
		}, []string{"example.org warning mx: mail.example.com (at 15) is neither the primary nor a node"}},
		{"the target is the primary's address", func(_ *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.Targets = []string{"198.51.100.25"} }, nil},
		{"two primaries, by MX", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.MX = append(com.MX, route.MX{Preference: 15, Host: "mail.example.org"})
			com.Hosts["mail.example.org"] = com.Hosts["mail.example.com"]
		}, nil},
		{"many addresses before them", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) {
			h := com.Hosts["mail.example.com"]
			for i := range 4 {
				h.Addresses = append(slices.Clone(h.Addresses), addr(fmt.Sprintf("203.0.113.%d", i+1)))
			}
			com.Hosts["mail.example.com"] = h
		}, []string{"example.com warning mx: 5 addresses come before those of the nodes, and a Postfix sender tries 5"}},
		{"the primary does not exist", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.Hosts["mail.example.com"] = Host{Err: route.ErrNotFound}
		}, []string{"example.com warning mx: mail.example.com is listed and does not exist in DNS"}},
		{"the primary has no address", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { com.Hosts["mail.example.com"] = Host{} }, []string{"example.com warning mx: mail.example.com is listed and has no address"}},
		{"the primary fails", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.Hosts["mail.example.com"] = Host{Err: errTimeout}
		}, []string{"example.com warning mx: mail.example.com is listed and could not be looked up: timeout"}},
		{"the primary is a CNAME", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) {
			h := com.Hosts["mail.example.com"]
			h.Alias = "other.example.com"
			com.Hosts["mail.example.com"] = h
		}, []string{"example.com warning mx: mail.example.com is a CNAME"}},
		{"not looked at", func(_ *fleet, _ *NodeFacts, _, com *DomainFacts) { delete(com.Hosts, "mail.example.com") }, []string{"example.com warning mx: of 4 MX records 1 were not looked at"}},
		{"a node by another name", func(x *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.MX[1].Host = "backup.example.com"
			com.Hosts["backup.example.com"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("192.0.2.1")}}}
		}, []string{"example.com warning mx: node mx1 is listed as backup.example.com, and its certificate is not for that name: x509: certificate is valid for mx1.example.net, not backup.example.com +example.com. MX 20 mx1.example.net. -example.com. MX 20 backup.example.com."}},
		{"a node by another name that it has", func(x *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.MX[1].Host = "backup.example.com"
			com.Hosts["backup.example.com"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("192.0.2.1")}}}
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net", "backup.example.com"}})
		}, nil},
		{"a node by a CNAME", func(x *fleet, _ *NodeFacts, _, com *DomainFacts) {
			com.MX[1].Host = "backup.example.com"
			com.Hosts["backup.example.com"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("192.0.2.1")}, Alias: "mx1.example.net"}}
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net", "backup.example.com"}})
		}, []string{"example.com warning mx: node mx1 is listed as backup.example.com, which is a CNAME"}},

		// Addresses.
		{"name not known", func(x *fleet, n *NodeFacts, org, com *DomainFacts) {
			*n = NodeFacts{Node: Node{Name: "mx1"}}
			org.MX, com.MX = org.MX[:1], com.MX[:1]
			org.MX, com.MX = append(org.MX, route.MX{Preference: 20, Host: "mx2.example.net"}), append(com.MX, route.MX{Preference: 20, Host: "mx3.example.net"})
		}, []string{
			"example.org warning mx: whether node mx1 is listed is not known", "example.org warning mx: node mx3 is not listed",
			"example.com warning mx: whether node mx1 is listed is not known", "example.com warning mx: node mx2 is not listed",
			"mx1 warning address: its host name is not known here",
		}},
		{"no such host", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.DNS, n.Ports = Host{Err: fmt.Errorf("look up A: %w", route.ErrNotFound)}, nil
			n.Addresses = append(n.Addresses, addr("2001:db8::1"), addr("10.0.0.1"))
		}, []string{
			"example.org warning mta-sts: whether the certificate of mx1.example.net satisfies the policy was not seen",
			"mx1 error address: mx1.example.net does not exist in DNS +mx1.example.net. A 192.0.2.1 +mx1.example.net. AAAA 2001:db8::1",
			"mx1 warning tlsa: the records at _25._tcp.mx1.example.net could not be compared",
		}},
		{"no address", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.DNS.Addresses = nil }, []string{"mx1 error address: mx1.example.net has neither an A nor an AAAA record +mx1.example.net. A 192.0.2.1"}},
		{"address fails", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.DNS = Host{Err: errTimeout} }, []string{"mx1 error address: the addresses of mx1.example.net could not be looked up: timeout"}},
		{"address fails in part", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.DNS.Err = errTimeout }, []string{"mx1 warning address: the addresses of mx1.example.net could be looked up in part only: timeout"}},
		{"a CNAME", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.DNS.Alias = "host.example.com" }, []string{"mx1 warning address: mx1.example.net is a CNAME: an MX record must not lead to one (RFC 2181 section 10.3), and some senders do not follow it -mx1.example.net. CNAME host.example.com. +mx1.example.net. A 192.0.2.1"}},
		{"a private address", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.DNS.Addresses = append(slices.Clone(n.DNS.Addresses), addr("10.0.0.1"))
		}, []string{"mx1 error address: mx1.example.net is 10.0.0.1, which others cannot reach -mx1.example.net. A 10.0.0.1"}},
		{"another address", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.DNS.Addresses = append(slices.Clone(n.DNS.Addresses), addr("203.0.113.1"))
			n.Ports = append(n.Ports, Port{Address: addr("203.0.113.1"), Name: "other.example.com"})
		}, []string{
			"mx1 error address: mx1.example.net is 203.0.113.1, and the node takes mail at 192.0.2.1 -mx1.example.net. A 203.0.113.1",
			"mx1 error smtp: at 203.0.113.1 another server answers, which calls itself other.example.com",
		}},
		{"another address that it answers at", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			p := n.Ports[0]
			p.Address = addr("203.0.113.1")
			n.DNS.Addresses, n.Ports = append(slices.Clone(n.DNS.Addresses), p.Address), append(n.Ports, p)
		}, []string{"mx1 warning address: mx1.example.net is 203.0.113.1, where the node answers, and which is not among its own addresses (192.0.2.1)"}},
		{"another node's address", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.DNS.Addresses, n.Ports = append(slices.Clone(n.DNS.Addresses), addr("192.0.2.2")), append(n.Ports, x.facts.Nodes[1].Ports[0])
		}, []string{
			"mx1 warning address: mx1.example.net is 192.0.2.2, which is node mx2 -mx1.example.net. A 192.0.2.2",
			"mx1 warning smtp: at 192.0.2.2 node mx2 answers",
		}},
		{"an address is missing", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.Addresses = append(n.Addresses, addr("2001:db8::1"))
		}, []string{"mx1 warning address: the node takes mail at 2001:db8::1 too, and DNS does not say so +mx1.example.net. AAAA 2001:db8::1"}},
		{"behind address translation", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.Addresses = []netip.Addr{addr("10.0.0.1")} }, nil},
		{"no port 25", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.Addresses = nil }, nil},

		// PTR.
		{"no PTR", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.Pointers[0] = Pointer{Address: addr("192.0.2.1")} }, []string{"mx1 warning ptr: 192.0.2.1 has no PTR record: a primary, and whoever gets a bounce, may refuse mail from it +1.2.0.192.in-addr.arpa. PTR mx1.example.net."}},
		{"no PTR of IPv6", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.Pointers[0] = Pointer{Address: addr("2001:db8::1a")}
		}, []string{"mx1 warning ptr: 2001:db8::1a has no PTR record: a primary, and whoever gets a bounce, may refuse mail from it +a.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR mx1.example.net."}},
		{"PTR to another", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.Pointers[0].Names, n.Pointers[0].Confirmed = []string{"dsl-1.example.com"}, nil
		}, []string{"mx1 warning ptr: 192.0.2.1 is called dsl-1.example.com, which does not lead back to it +1.2.0.192.in-addr.arpa. PTR mx1.example.net. -1.2.0.192.in-addr.arpa. PTR dsl-1.example.com."}},
		{"PTR to another name of it", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.Pointers[0].Names, n.Pointers[0].Confirmed = []string{"host.example.com", "x.test"}, []string{"host.example.com"}
		}, nil},
		{"PTR fails", func(_ *fleet, n *NodeFacts, _, _ *DomainFacts) { n.Pointers[0].Err = errTimeout }, []string{"mx1 warning ptr: the name of 192.0.2.1 could not be looked up: timeout"}},

		// SMTP. What is not seen leaves MTA-STS and DANE undecided.
		{"421", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0] = Port{Address: addr("192.0.2.1"), Err: &smtpclient.StageError{Stage: smtpclient.StageBanner, Reply: mail.Reply{Code: 421, Text: "no quorum"}}}
		}, []string{"mx1 warning smtp: 192.0.2.1 takes no mail at present: 421 no quorum"}},
		{"554", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0] = Port{Address: addr("192.0.2.1"), Err: &smtpclient.StageError{Stage: smtpclient.StageBanner, Reply: mail.Reply{Code: 554, Text: "no"}}}
		}, []string{"mx1 error smtp: 192.0.2.1 refuses to talk: 554 no"}},
		{"refused", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0] = Port{Address: addr("192.0.2.1"), Err: syscall.ECONNREFUSED}
		}, []string{"mx1 error smtp: nobody takes mail at 192.0.2.1, as seen from this host: connection refused"}},
		{"reset", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0] = Port{Address: addr("192.0.2.1"), Err: reset}
		}, []string{"mx1 error smtp: nobody takes mail at 192.0.2.1"}},
		{"no IPv6 here", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			a := addr("2001:db8::1")
			n.Addresses, n.DNS.Addresses = append(n.Addresses, a), append(slices.Clone(n.DNS.Addresses), a)
			n.Ports = append(n.Ports, Port{Address: a, Err: syscall.ENETUNREACH})
		}, []string{"mx1 warning smtp: 2001:db8::1 could not be looked at, since this host has no way to it"}},
		{"its own address, translated", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Here, n.Addresses = true, []netip.Addr{addr("10.0.0.1")}
			n.Ports[0] = Port{Address: addr("192.0.2.1"), Err: errTimeout}
		}, []string{"mx1 warning smtp: 192.0.2.1 does not answer this host, which may be because it is its own, behind address translation"}},
		{"somebody else", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0].Name = "other.example.com"
		}, []string{"mx1 error smtp: at 192.0.2.1 another server answers, which calls itself other.example.com"}},

		// Certificates.
		{"no STARTTLS, no policy", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			n.Ports[0].StartTLS, n.Ports[0].TLS = false, nil
		}, []string{"mx1 warning certificate: 192.0.2.1 does not offer STARTTLS"}},
		{"no STARTTLS", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) { n.Ports[0].StartTLS, n.Ports[0].TLS = false, nil }, []string{
			"example.org error mta-sts: mx1.example.net does not offer STARTTLS at 192.0.2.1: senders that heed the policy do not deliver there",
			"mx1 warning certificate: 192.0.2.1 does not offer STARTTLS",
			"mx1 error tlsa: there are TLSA records and no STARTTLS",
		}},
		{"STARTTLS fails", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.Ports[0].TLS, n.Ports[0].Err = nil, errTimeout
		}, []string{
			"example.org error mta-sts: STARTTLS fails at 192.0.2.1",
			"mx1 warning certificate: 192.0.2.1 offers STARTTLS, and it failed: timeout",
			"mx1 warning tlsa: the records at _25._tcp.mx1.example.net could not be compared",
		}},
		{"another name", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			x.shows(deliverytest.Certificate{Names: []string{"other.test"}})
			n.TLSA = TLSA{}
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net (most senders take any): x509: certificate is valid for other.test, not mx1.example.net"}},
		{"over", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, From: now.AddDate(-1, 0, 0), To: now.AddDate(0, 0, -1)})
			n.TLSA = TLSA{}
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net (most senders take any): x509: certificate has expired or is not yet valid"}},
		{"not yet", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, From: now.AddDate(0, 0, 1), To: now.AddDate(1, 0, 0)})
			n.TLSA = TLSA{}
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net (most senders take any): x509: certificate has expired or is not yet valid"}},
		{"soon over", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, From: now.AddDate(-1, 0, 0), To: now.AddDate(0, 0, 5)})
			n.TLSA = TLSA{}
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows ends in 5 days, on 2026-12-05"}},
		{"self-made", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.plain()
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, SelfMade: true})
			n.TLSA = TLSA{}
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net (most senders take any): x509: certificate signed by unknown authority"}},
		{"self-made, under DANE", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			org.STS = STS{}
			x.shows(deliverytest.Certificate{Names: []string{"any.test"}, SelfMade: true})
		}, nil},
		{"self-made, and TLSA that is not signed", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			org.STS = STS{}
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, SelfMade: true})
			n.TLSA.Signed = false
		}, []string{"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid", "mx1 warning tlsa: the records at _25._tcp.mx1.example.net are not signed"}},
		{"self-made, under MTA-STS", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, SelfMade: true})
		}, []string{"example.org error mta-sts: the certificate that 192.0.2.1 shows does not satisfy the policy for mx1.example.net: senders that heed the policy do not deliver there (x509: certificate signed by unknown authority)"}},
		{"self-made, under MTA-STS that is tested", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net"}, SelfMade: true})
			org.STS.Policy.Mode = tlspolicy.STSModeTesting
		}, []string{"example.org warning mta-sts: the certificate that 192.0.2.1 shows does not satisfy the policy for mx1.example.net: once the policy is enforced, senders that heed it will not deliver there"}},

		// TLSA.
		{"no TLSA, the primary has", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) { n.TLSA = TLSA{} }, []string{"mx1 warning tlsa: no TLSA records, while mx2.example.net has some: mail that would be safe on the way there is not on the way here +_25._tcp.mx1.example.net. TLSA 3 1 1 "}},
		{"TLSA of another", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.TLSA.Records = []tlspolicy.TLSARecord{record311(x.facts.Nodes[1].Ports[0].TLS)}
		}, []string{"mx1 error tlsa: _25._tcp.mx1.example.net is not of the certificate that 192.0.2.1 shows, and who uses DANE does not deliver there: no TLSA record is of the certificate +_25._tcp.mx1.example.net. TLSA 3 1 1 "}},
		{"TLSA of another, and one of it", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.TLSA.Records = append(n.TLSA.Records, record311(x.facts.Nodes[1].Ports[0].TLS))
		}, nil},
		// RFC 7672 section 3.2: of an authority, the domain's name is as good as the host's.
		{"TLSA of an authority, by the node's name", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			org.STS = STS{}
			x.underOwn(deliverytest.Certificate{Names: []string{"mx1.example.net"}})
		}, nil},
		{"TLSA of an authority, by the names of all domains", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			org.STS = STS{}
			x.underOwn(deliverytest.Certificate{Names: []string{"example.org", "example.com"}})
		}, nil},
		{"TLSA of an authority, by the name of one domain", func(x *fleet, n *NodeFacts, org, _ *DomainFacts) {
			org.STS = STS{}
			x.underOwn(deliverytest.Certificate{Names: []string{"example.org"}})
		}, []string{
			"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net",
			"mx1 error tlsa: _25._tcp.mx1.example.net is not of the certificate that 192.0.2.1 shows, and who uses DANE does not deliver the mail of example.com there: x509: certificate is valid for example.org, not mx1.example.net +_25._tcp.mx1.example.net. TLSA 3 1 1 ",
		}},
		{"TLSA of an authority, by the name of a domain that is elsewhere", func(x *fleet, n *NodeFacts, org, com *DomainFacts) {
			org.STS = STS{}
			x.underOwn(deliverytest.Certificate{Names: []string{"example.edu"}})
		}, []string{
			"mx1 warning certificate: the certificate that 192.0.2.1 shows is not valid for mx1.example.net",
			"mx1 error tlsa: _25._tcp.mx1.example.net is not of the certificate that 192.0.2.1 shows, and who uses DANE does not deliver there: x509: certificate is valid for example.edu, not mx1.example.net +_25._tcp.mx1.example.net. TLSA 3 1 1 ",
		}},
		{"TLSA of another, not signed", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.TLSA = TLSA{Records: []tlspolicy.TLSARecord{record311(x.facts.Nodes[1].Ports[0].TLS)}}
		}, []string{"mx1 warning tlsa: the records at _25._tcp.mx1.example.net are not signed, so that nobody heeds them", "mx1 warning tlsa: _25._tcp.mx1.example.net is not of the certificate"}},
		{"TLSA, and no validation here", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			x.facts.Validates, n.TLSA.Signed = false, false
		}, []string{"mx1 warning tlsa: whether the records at _25._tcp.mx1.example.net are signed could not be seen"}},
		{"TLSA that is of no use", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) { n.TLSA.Records[0].Usage = 1 }, []string{"mx1 error tlsa: _25._tcp.mx1.example.net is not of the certificate that 192.0.2.1 shows, and who uses DANE does not deliver there: none of 1 TLSA records is usable"}},
		{"TLSA fail", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) { n.TLSA = TLSA{Err: errTimeout} }, []string{"mx1 error tlsa: _25._tcp.mx1.example.net could not be looked up, and its zone is signed"}},
		{"TLSA fail, not signed", func(x *fleet, n *NodeFacts, _, _ *DomainFacts) {
			n.TLSA, n.DNS.Signed = TLSA{Err: errTimeout}, false
		}, []string{"mx1 warning tlsa: _25._tcp.mx1.example.net could not be looked up: timeout"}},

		// MTA-STS.
		{"policy without a node", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Policy.MX = org.STS.Policy.MX[:3] }, []string{`example.org error mta-sts: the policy (enforce) does not name mx3.example.net, as node mx3 is listed: senders that heed the policy do not deliver there +_mta-sts.example.org. TXT "v=STSv1; id=20261130T120000Z"`}},
		{"policy without a node, tested", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.STS.Policy.MX, org.STS.Policy.Mode = org.STS.Policy.MX[:3], tlspolicy.STSModeTesting
		}, []string{"example.org warning mta-sts: the policy (testing) does not name mx3.example.net, as node mx3 is listed: once the policy is enforced"}},
		{"policy without a node that is not listed", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX, org.STS.Policy.MX = org.MX[:3], org.STS.Policy.MX[:3]
		}, []string{"example.org warning mx: node mx3 is not listed", "example.org warning mta-sts: the policy (enforce) does not name mx3.example.net: name it before the MX records do"}},
		{"policy without the primary", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Policy.MX = org.STS.Policy.MX[1:] }, []string{"example.org error mta-sts: the policy (enforce) does not name mail.example.org"}},
		{"policy without a node by another name", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.MX[1].Host = "backup.example.org"
			org.Hosts["backup.example.org"] = Host{Host: route.Host{Addresses: []netip.Addr{addr("192.0.2.1")}}}
			x.shows(deliverytest.Certificate{Names: []string{"mx1.example.net", "backup.example.org"}})
		}, []string{"example.org error mta-sts: the policy (enforce) does not name backup.example.org, as node mx1 is listed"}},
		{"policy with a star", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.STS.Policy.MX = []string{"mail.example.org", "*.example.net"}
		}, nil},
		{"policy of mode none", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Policy = tlspolicy.STSPolicy{} }, nil},
		{"policy that is not announced", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Records = []string{"other"} }, []string{`example.org warning mta-sts: a policy is served, and no record at _mta-sts.example.org announces it: senders do not look for it +_mta-sts.example.org. TXT "v=STSv1; id=20261130T120000Z"`}},
		{"no policy at its host", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.STS.Records, org.STS.Err = nil, errTimeout
		}, nil},
		{"policy that cannot be had", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Err = errTimeout }, []string{"example.org warning mta-sts: a policy is announced and cannot be had: timeout"}},
		{"two records", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) {
			org.STS.Records = []string{"v=STSv1; id=1;", "v=STSv1; id=2;"}
		}, []string{"example.org warning mta-sts: _mta-sts.example.org is no good, and senders go on as without a policy: 2 MTA-STS records"}},
		{"record without id", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS.Records = []string{"v=STSv1;"} }, []string{"example.org warning mta-sts: _mta-sts.example.org is no good"}},
		{"record fails", func(x *fleet, _ *NodeFacts, org, _ *DomainFacts) { org.STS = STS{RecordsErr: errTimeout} }, []string{"example.org warning mta-sts: _mta-sts.example.org could not be looked up: timeout"}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			x := newFleet(t)
			row.change(x, &x.facts.Nodes[0], &x.facts.Domains[0], &x.facts.Domains[1])
			got := problems(Judge(x.facts))
			if len(got) != len(row.want) {
				t.Fatalf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(row.want, "\n\t"))
			}
			for i := range got {
				if !strings.Contains(got[i], row.want[i]) {
					t.Errorf("got\n\t%s\nwant\n\t%s", got[i], row.want[i])
				}
			}
		})
	}
}

func TestPolicyText(t *testing.T) {
	x := newFleet(t)
	x.facts.Domains[0].STS.Policy.MX = []string{"mail.example.org"}
	// A forged MX record is not to find its way into it.
	x.facts.Domains[0].MX = append(x.facts.Domains[0].MX, route.MX{Preference: 15, Host: "evil.example.com"})
	x.facts.Domains[0].Hosts["evil.example.com"] = x.facts.Domains[0].Hosts["mail.example.org"]
	policies := 0
	for _, f := range Judge(x.facts).Domains[0].Findings {
		if f.Policy == "" {
			continue
		}
		policies++
		p, err := tlspolicy.ParseSTSPolicy([]byte(f.Policy))
		if err != nil || strings.Join(p.MX, " ") != "mail.example.org mx1.example.net mx2.example.net mx3.example.net" || p.Mode != tlspolicy.STSModeEnforce || p.MaxAge != 24*time.Hour {
			t.Errorf("%q: %+v %v", f.Policy, p, err)
		}
		if id, err := tlspolicy.ParseSTSRecord([]string{strings.Trim(f.Records[0].Data, `"`)}); err != nil || id == "" {
			t.Errorf("%v: %q %v", f.Records, id, err)
		}
	}
	if policies != 3 {
		t.Errorf("%d findings with a policy", policies)
	}
}
