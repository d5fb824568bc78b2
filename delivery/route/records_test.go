package route

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestHost(t *testing.T) {
	r := newResolver(t).with(
		"a.test. 0 A 192.0.2.1", "a.test. 0 AAAA 2001:db8::1", "alias.test. 0 CNAME a.test.",
		"half.test. 0 A 192.0.2.2", "dangling.test. 0 CNAME nowhere.test.", "plain.test. 0 A 192.0.2.3", "empty.test. 0 TXT x",
	)
	r.unsigned["plain.test"] = true
	r.failing["half.test AAAA"] = true
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}}) // not proven, and asked all the same
	for _, row := range []struct {
		name, addresses, alias string
		signed, missing, fails bool
	}{
		{name: "a.test", addresses: "192.0.2.1 2001:db8::1", signed: true},
		{name: "alias.test", addresses: "192.0.2.1 2001:db8::1", alias: "a.test", signed: true},
		{name: "plain.test", addresses: "192.0.2.3"},
		{name: "half.test", addresses: "192.0.2.2", fails: true},
		{name: "empty.test", signed: true},
		{name: "dangling.test", missing: true, fails: true},
		{name: "nowhere.test", missing: true, fails: true},
	} {
		h, err := d.Host(t.Context(), row.name)
		var text []string
		for _, a := range h.Addresses {
			text = append(text, a.String())
		}
		if strings.Join(text, " ") != row.addresses || h.Alias != row.alias || h.Signed != row.signed || (err != nil) != row.fails || errors.Is(err, ErrNotFound) != row.missing {
			t.Errorf("%s: %+v %v", row.name, h, err)
		}
	}
}

func TestNames(t *testing.T) {
	r := newResolver(t).with("1.2.0.192.in-addr.arpa. 0 PTR MX1.example.test.", "2.2.0.192.in-addr.arpa. 0 CNAME 2.sub.test.", "2.sub.test. 0 PTR mx2.example.test.",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 PTR mx6.example.test.")
	r.failing["4.2.0.192.in-addr.arpa PTR"] = true
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}})
	for address, want := range map[string][]string{
		"192.0.2.1": {"mx1.example.test"}, "192.0.2.2": {"mx2.example.test"}, "2001:db8::1": {"mx6.example.test"}, "192.0.2.3": nil,
	} {
		if got, err := d.Names(t.Context(), netip.MustParseAddr(address)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v", address, got, err)
		}
	}
	if got, err := d.Names(t.Context(), netip.MustParseAddr("192.0.2.4")); err == nil {
		t.Errorf("SERVFAIL: %q", got)
	}
}

func TestTLSARecords(t *testing.T) {
	r := newResolver(t).with("_25._tcp.a.test. 0 TLSA 3 1 1 "+strings.Repeat("ab", 32), "_25._tcp.plain.test. 0 TLSA 3 1 1 "+strings.Repeat("cd", 32))
	r.unsigned["_25._tcp.plain.test"] = true
	r.failing["_25._tcp.c.test TLSA"] = true
	d := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}})
	for name, want := range map[string]struct {
		n      int
		signed bool
	}{"_25._tcp.a.test": {1, true}, "_25._tcp.plain.test": {1, false}, "_25._tcp.nowhere.test": {}} {
		if got, signed, err := d.TLSARecords(t.Context(), name); err != nil || len(got) != want.n || signed != want.signed {
			t.Errorf("%s: %v %v %v", name, got, signed, err)
		}
	}
	if got, _, err := d.TLSARecords(t.Context(), "_25._tcp.c.test"); err == nil {
		t.Errorf("SERVFAIL: %v", got)
	}
}

func TestValidates(t *testing.T) {
	good, blind := newResolver(t), newResolver(t)
	blind.blind = true
	for r, want := range map[*resolver]bool{good: true, blind: false} {
		if got := NewDNS(DNSConfig{Servers: []netip.AddrPort{r.serve(t).at}}).Validates(t.Context()); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
