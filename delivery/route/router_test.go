package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
)

var errServfail = errors.New("SERVFAIL")

// A zone answers from maps. A host that is in neither does not exist.
type zone struct {
	mx    map[string][]MX
	hosts map[string]string // addresses, separated by spaces; "SERVFAIL"
	asked int
}

func (z *zone) MX(_ context.Context, name string) ([]MX, error) {
	if name == "servfail.test" {
		return nil, errServfail
	}
	if m, ok := z.mx[name]; ok {
		return m, nil
	}
	if _, ok := z.hosts[name]; ok {
		return nil, nil
	}
	return nil, ErrNotFound
}

func (z *zone) Addresses(_ context.Context, host string) ([]netip.Addr, error) {
	z.asked++
	text, ok := z.hosts[host]
	if !ok {
		return nil, ErrNotFound
	}
	if text == "SERVFAIL" {
		return nil, errServfail
	}
	var out []netip.Addr
	for a := range strings.FieldsSeq(text) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func self() Self {
	return Self{
		Names:     []string{"mx1.backup.test", "MX2.backup.test."},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2525")},
	}
}

// unshuffled keeps equal hosts as they come.
func unshuffled(int, func(i, j int)) {}

func TestRouteByMX(t *testing.T) {
	z := &zone{
		mx: map[string][]MX{
			"plain.test":    {{20, "mx1.backup.test"}, {10, "primary.test"}},
			"both.test":     {{10, "dual.test"}},
			"order.test":    {{30, "c.test"}, {10, "a.test"}, {20, "b.test"}},
			"worse.test":    {{10, "a.test"}, {20, "mx2.backup.test"}, {20, "b.test"}, {30, "c.test"}},
			"address.test":  {{10, "a.test"}, {20, "b.test"}, {20, "nat.test"}, {30, "c.test"}},
			"v6self.test":   {{10, "a.test"}, {20, "sixself.test"}},
			"best.test":     {{5, "mx1.backup.test"}, {10, "primary.test"}},
			"best2.test":    {{5, "nat.test"}, {10, "primary.test"}},
			"null.test":     {{0, ""}},
			"halfnull.test": {{0, ""}, {10, "a.test"}},
			"broken.test":   {{10, "broken-host.test"}, {20, "b.test"}},
			"gone.test":     {{10, "nowhere.test"}},
			"empty.test":    {{10, "noaddress.test"}},
			"allbad.test":   {{10, "broken-host.test"}, {20, "nowhere.test"}},
		},
		hosts: map[string]string{
			"primary.test": "198.51.100.10", "dual.test": "2001:db8::10 198.51.100.11",
			"a.test": "198.51.100.1", "b.test": "198.51.100.2", "c.test": "198.51.100.3",
			"nat.test": "192.0.2.1", "sixself.test": "198.51.100.9 2001:db8::1",
			"implicit.test": "198.51.100.20", "broken-host.test": "SERVFAIL", "noaddress.test": "",
			"mx1.backup.test": "192.0.2.77", "selfdomain.test": "192.0.2.1",
		},
	}
	r := New(Config{Resolver: z, Self: self, Shuffle: unshuffled})
	for _, row := range []struct {
		domain, want string
		err          error
	}{
		{domain: "plain.test", want: "primary.test[198.51.100.10:25]"},
		{domain: "both.test", want: "dual.test[198.51.100.11:25] dual.test[[2001:db8::10]:25]"},
		{domain: "order.test", want: "a.test[198.51.100.1:25] b.test[198.51.100.2:25] c.test[198.51.100.3:25]"},
		{domain: "worse.test", want: "a.test[198.51.100.1:25]"},
		{domain: "address.test", want: "a.test[198.51.100.1:25]"},
		{domain: "v6self.test", want: "a.test[198.51.100.1:25]"},
		{domain: "best.test", err: ErrOnlyOurselves},
		{domain: "best2.test", err: ErrOnlyOurselves},
		{domain: "implicit.test", want: "implicit.test[198.51.100.20:25]"},
		{domain: "selfdomain.test", err: ErrOnlyOurselves},
		{domain: "null.test", err: ErrNullMX},
		{domain: "halfnull.test", want: "a.test[198.51.100.1:25]"},
		{domain: "broken.test", want: "b.test[198.51.100.2:25]"},
		{domain: "allbad.test", err: errServfail},
		{domain: "gone.test", err: ErrNotFound},
		{domain: "empty.test", err: ErrNoAddress},
		{domain: "nxdomain.test", err: ErrNotFound},
		{domain: "servfail.test", err: errServfail},
	} {
		hops, err := r.Route(t.Context(), fsm.Domain{Name: mailDomain(row.domain), MX: true})
		if got := text(hops); got != row.want || !errors.Is(err, row.err) || (err == nil) != (row.err == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", row.domain, got, err, row.want, row.err)
		}
	}
}

func text(hops []Hop) string {
	var out []string
	for _, h := range hops {
		out = append(out, h.String())
	}
	return strings.Join(out, " ")
}

func TestRouteExplicit(t *testing.T) {
	z := &zone{hosts: map[string]string{"a.test": "198.51.100.1", "local.test": "127.0.0.1", "broken.test": "SERVFAIL"}}
	r := New(Config{Resolver: z, Self: self})
	for _, row := range []struct {
		targets []fsm.Target
		want    string
		err     error
	}{
		{targets: []fsm.Target{{Host: "a.test", Port: 2500}, {Host: "198.51.100.7", Port: 25}}, want: "a.test[198.51.100.1:2500] 198.51.100.7[198.51.100.7:25]"},
		{targets: []fsm.Target{{Host: "2001:db8::5", Port: 25}}, want: "2001:db8::5[[2001:db8::5]:25]"},
		{targets: []fsm.Target{{Host: "[2001:db8::5]"}}, want: "[2001:db8::5][[2001:db8::5]:25]"},
		{targets: []fsm.Target{{Host: "::ffff:198.51.100.7", Port: 25}}, want: "::ffff:198.51.100.7[198.51.100.7:25]"},
		// A primary beside us on the same host is no member; our own listener is.
		{targets: []fsm.Target{{Host: "local.test", Port: 2500}}, want: "local.test[127.0.0.1:2500]"},
		{targets: []fsm.Target{{Host: "local.test", Port: 2525}}, err: ErrOnlyOurselves},
		{targets: []fsm.Target{{Host: "broken.test"}, {Host: "a.test"}}, want: "a.test[198.51.100.1:25]"},
		{targets: []fsm.Target{{Host: "broken.test"}}, err: errServfail},
		{targets: []fsm.Target{{Host: "nowhere.test"}}, err: ErrNotFound},
		{err: ErrNoAddress},
	} {
		hops, err := r.Route(t.Context(), fsm.Domain{Name: "example.test", Targets: row.targets})
		if got := text(hops); got != row.want || !errors.Is(err, row.err) || (err == nil) != (row.err == nil) {
			t.Errorf("%v: %q, %v; want %q, %v", row.targets, got, err, row.want, row.err)
		}
	}
}

// Thousands of records cost a bounded number of lookups, and our own name is
// seen wherever in them it stands.
func TestRouteIsBounded(t *testing.T) {
	z := &zone{mx: map[string][]MX{}, hosts: map[string]string{}}
	for i := range 5000 {
		host := fmt.Sprintf("h%d.test", i)
		z.mx["many.test"] = append(z.mx["many.test"], MX{Preference: uint16(10 + i), Host: host})
		z.hosts[host] = strings.Repeat("198.51.100.1 ", 100)
	}
	hops, err := New(Config{Resolver: z}).Route(t.Context(), fsm.Domain{Name: "many.test", MX: true})
	if err != nil || len(hops) != hopsMax || z.asked > mxHostsMax {
		t.Fatalf("%d hops after %d lookups, %v", len(hops), z.asked, err)
	}
}

func TestEqualPreferencesAreShuffled(t *testing.T) {
	z := &zone{
		mx:    map[string][]MX{"d.test": {{10, "a.test"}, {10, "b.test"}, {5, "best.test"}}},
		hosts: map[string]string{"a.test": "198.51.100.1", "b.test": "198.51.100.2", "best.test": "198.51.100.3"},
	}
	first := map[string]bool{}
	r := New(Config{Resolver: z})
	for range 200 {
		hops, err := r.Route(t.Context(), fsm.Domain{Name: "d.test", MX: true})
		if err != nil || hops[0].Host != "best.test" {
			t.Fatalf("%v %v", hops, err)
		}
		first[hops[1].Host] = true
	}
	if len(first) != 2 { // 2^-199
		t.Fatalf("always the same of equal hosts: %v", first)
	}
}
