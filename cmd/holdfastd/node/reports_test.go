package node

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
)

// oneZone has MX records for sender.test, and an address for every host.
type oneZone struct{}

func (oneZone) MX(_ context.Context, name string) ([]route.MX, error) {
	if name != "sender.test" {
		return nil, route.ErrNotFound
	}
	return []route.MX{{Preference: 10, Host: "mx.sender.test"}}, nil
}

func (oneZone) Addresses(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil
}

// TestReportsGoByMXOrTheSmarthost: a report goes to the MX hosts of its sender, or to the
// smarthost where there is one. Mail goes to its primary in either case.
func TestReportsGoByMXOrTheSmarthost(t *testing.T) {
	relayed := fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "mail.a.test", Port: 26}}}
	report := fsm.Domain{Name: fsm.OutboundDomain("sender.test"), MX: true}
	router := route.New(route.Config{Resolver: oneZone{}})
	for _, row := range []struct {
		smarthost string
		domain    fsm.Domain
		want      []string
	}{
		{"", relayed, []string{"mail.a.test[192.0.2.7:26]"}},
		{"", report, []string{"mx.sender.test[192.0.2.7:25]"}},
		{"", fsm.Domain{Name: fsm.OutboundDomain("nowhere.test"), MX: true}, nil},
		{"relay.test:587", relayed, []string{"mail.a.test[192.0.2.7:26]"}},
		{"relay.test:587", report, []string{"relay.test[192.0.2.7:587]"}},
		{"relay.test:587", fsm.Domain{Name: fsm.OutboundDomain("nowhere.test"), MX: true}, []string{"relay.test[192.0.2.7:587]"}},
		{"[2001:db8::25]:25", report, []string{"2001:db8::25[[2001:db8::25]:25]"}},
		{"relay.test", report, nil},
		{"relay.test:0x19", report, nil},
	} {
		hops, err := outboundRouter{router, row.smarthost}.Route(t.Context(), row.domain)
		var got []string
		for _, h := range hops {
			got = append(got, h.String())
		}
		if !slices.Equal(got, row.want) || (err == nil) != (row.want != nil) {
			t.Errorf("%s by %q: %v, %v; want %v", row.domain.Name, row.smarthost, got, err, row.want)
		}
	}
}
