package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/dnscheck"
	mxroute "github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
)

var rewrite = flag.Bool("rewrite", false, "write the expected output of \"domain check\" anew")

// A looker stands in for the world.
type looker struct {
	facts    func(nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts
	resolver netip.AddrPort
	hello    string
	nodes    []dnscheck.Node
	domains  []dnscheck.Domain
}

func (l *looker) look(_ context.Context, resolver netip.AddrPort, hello string, nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts {
	l.resolver, l.hello, l.nodes, l.domains = resolver, hello, nodes, domains
	return l.facts(nodes, domains)
}

// check runs "domain check" against a fake daemon and a fake world.
func check(t *testing.T, l *looker, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	socket, stop, err := newFakeDaemon().serve()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader(""), out: bufio.NewWriter(&out), errOut: &errOut}
	root := a.command()
	for _, c := range root.Commands() {
		if c.Name() == "domain" {
			c.RemoveCommand(c.Commands()...)
			c.AddCommand(a.domainCheckCommand(l.look))
		}
	}
	root.SetArgs(append([]string{"--socket", socket, "domain", "check"}, args...))
	err = root.ExecuteContext(t.Context())
	if flushErr := a.out.Flush(); flushErr != nil {
		t.Fatal(flushErr)
	}
	return a.report(t.Context(), err), out.String(), errOut.String()
}

// wrong is a world in which some things are.
func wrong(nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts {
	f := dnscheck.Facts{Now: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), Validates: true}
	for _, d := range domains {
		f.Domains = append(f.Domains, dnscheck.DomainFacts{
			Domain: d,
			MX:     []mxroute.MX{{Preference: 10, Host: "evil\x1b[2J.example"}, {Preference: 20, Host: "mx1.example.net"}},
			Hosts:  map[string]dnscheck.Host{"evil\x1b[2J.example": {Host: mxroute.Host{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.25")}}}},
			STS: dnscheck.STS{Records: []string{"v=STSv1; id=1;"}, Asked: true,
				Policy: tlspolicy.STSPolicy{Mode: tlspolicy.STSModeTesting, MX: []string{"mail.example.org"}, MaxAge: 7 * 24 * time.Hour}},
		})
	}
	for _, n := range nodes {
		facts := dnscheck.NodeFacts{Node: n}
		if n.Host != "" {
			there := netip.MustParseAddr("192.0.2.1")
			facts.DNS.Addresses = []netip.Addr{there}
			facts.Pointers = []dnscheck.Pointer{{Address: there, Names: []string{"dsl.example.com"}}}
			facts.Ports = []dnscheck.Port{{Address: there, Name: n.Host}}
		}
		f.Nodes = append(f.Nodes, facts)
	}
	return f
}

// fine is a world of one node that all is well with.
func fine(nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts {
	f := wrong(nodes[:1], domains)
	for i := range f.Domains {
		f.Domains[i].MX[0].Host = "mail.example.org"
		f.Domains[i].Hosts = map[string]dnscheck.Host{"mail.example.org": {Host: mxroute.Host{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.25")}}}}
		f.Domains[i].STS = dnscheck.STS{}
	}
	f.Nodes[0].DNS.Addresses = append(f.Nodes[0].DNS.Addresses, netip.MustParseAddr("2001:db8::1"))
	f.Nodes[0].Pointers, f.Nodes[0].Ports = nil, nil
	return f
}

// TestDomainCheckOutput compares with testdata/domaincheck; -rewrite writes it anew.
func TestDomainCheckOutput(t *testing.T) {
	for _, row := range []struct {
		golden string
		facts  func([]dnscheck.Node, []dnscheck.Domain) dnscheck.Facts
		args   []string
		code   int
		stderr string
	}{
		{"wrong.out", wrong, nil, exitWarnings, "holdfast: 13 warnings\n"},
		{"wrong.json", wrong, []string{"-o", "json", "example.test"}, exitWarnings, ""},
		{"fine.out", fine, []string{"example.org"}, exitDone, ""},
		{"fine-quiet.out", fine, []string{"--quiet"}, exitDone, ""},
		{"fine-quiet.json", fine, []string{"-q", "-o", "json", "example.org"}, exitDone, ""},
		{"error.out", func(n []dnscheck.Node, d []dnscheck.Domain) dnscheck.Facts {
			f := fine(n, d)
			f.Domains[0].MX = nil
			return f
		}, []string{"--quiet"}, exitFailure, "holdfast: 1 error, 0 warnings\n"},
	} {
		l := &looker{facts: row.facts}
		code, stdout, stderr := check(t, l, row.args...)
		if code != row.code || row.stderr != "" && stderr != row.stderr {
			t.Errorf("%s: exit status %d, %q", row.golden, code, stderr)
		}
		if !printable(strings.ReplaceAll(stdout+stderr, "\n", "")) {
			t.Errorf("%s: %q", row.golden, stdout)
		}
		path := filepath.Join("testdata", "domaincheck", row.golden)
		if *rewrite {
			if err := os.WriteFile(path, []byte(stdout), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if stdout != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", row.golden, stdout, want)
		}
	}
}

// TestDomainCheckSubjects holds what is looked at.
func TestDomainCheckSubjects(t *testing.T) {
	l := &looker{facts: fine}
	check(t, l, "example.test", "--resolver", "9.9.9.9")
	if len(l.domains) != 1 || l.domains[0].Name != "example.test" || !slices.Equal(l.domains[0].Targets, []string{"2001:db8::10", "b.example"}) {
		t.Errorf("domains %+v", l.domains)
	}
	// mx3 and mx5 are seen, and were not added.
	if len(l.nodes) != 3 || l.nodes[0].Name != "mx1" || l.nodes[1].Name != "mx2" || l.nodes[2].Name != "mx4" {
		t.Fatalf("nodes %+v", l.nodes)
	}
	if n := l.nodes[0]; n.Host != "mx1.example.net" || !n.Here || !slices.Equal(n.Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}) {
		t.Errorf("%+v", n)
	}
	if n := l.nodes[1]; n.Host != "" || n.Here || len(n.Addresses) != 0 {
		t.Errorf("%+v", n)
	}
	if l.resolver.String() != "9.9.9.9:53" || l.hello != "mx1.example.net" {
		t.Errorf("resolver %s, EHLO %s", l.resolver, l.hello)
	}
	check(t, l)
	if len(l.domains) != 2 || l.domains[0].Name != "example.test" || l.domains[1].Targets != nil || l.resolver.IsValid() {
		t.Errorf("domains %+v, resolver %s", l.domains, l.resolver)
	}
}

func TestResolvers(t *testing.T) {
	for in, want := range map[string]string{
		"9.9.9.9": "9.9.9.9:53", "9.9.9.9:5353": "9.9.9.9:5353", "2620:fe::fe": "[2620:fe::fe]:53",
		"[2620:fe::fe]": "[2620:fe::fe]:53", "[2620:fe::fe]:54": "[2620:fe::fe]:54",
		"": "", "dns": "", "9.9.9.9:0": "", "9.9.9.9:": "", "9.9.9.9:99999": "",
	} {
		got, err := parseResolver(in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q: %s %v", in, got, err)
		}
	}
}
