package delivery

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
)

// An mxZone is what DNS says of the domain, until it is repaired.
type mxZone struct {
	mu       sync.Mutex
	repaired bool
	mx       func() ([]route.MX, error)
	address  func() ([]netip.Addr, error)
}

func (z *mxZone) repair() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.repaired = true
}

func (z *mxZone) whole() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.repaired
}

func (z *mxZone) MX(context.Context, string) ([]route.MX, error) {
	if z.mx == nil || z.whole() {
		return []route.MX{{Preference: 10, Host: "primary.test"}, {Preference: 20, Host: "mx1.backup.test"}}, nil
	}
	return z.mx()
}

func (z *mxZone) Addresses(context.Context, string) ([]netip.Addr, error) {
	if z.address == nil || z.whole() {
		return []netip.Addr{netip.MustParseAddr("192.0.2.10")}, nil
	}
	return z.address()
}

// TestDNSBouncesNothing: whatever DNS says of a domain, or does not say, its mail waits,
// is not even counted as tried, and the cluster knows why. It goes when DNS is repaired.
func TestDNSBouncesNothing(t *testing.T) {
	records := func(mx ...route.MX) func() ([]route.MX, error) {
		return func() ([]route.MX, error) { return mx, nil }
	}
	nowhere := func() ([]netip.Addr, error) { return nil, route.ErrNotFound }
	for _, row := range []struct {
		name, says string
		zone       *mxZone
	}{
		{name: "the domain does not exist", says: "no such name", zone: &mxZone{mx: func() ([]route.MX, error) { return nil, route.ErrNotFound }}},
		{name: "SERVFAIL", says: "SERVFAIL", zone: &mxZone{mx: func() ([]route.MX, error) { return nil, errors.New("server says SERVFAIL") }}},
		{name: "null MX", says: "null MX", zone: &mxZone{mx: records(route.MX{})}},
		{name: "the nodes alone", says: "no next hop but ourselves", zone: &mxZone{mx: records(route.MX{Preference: 20, Host: "mx1.backup.test"})}},
		{name: "the nodes are better", says: "no next hop but ourselves", zone: &mxZone{mx: records(route.MX{Preference: 5, Host: "mx1.backup.test"}, route.MX{Preference: 10, Host: "primary.test"})}},
		{name: "the primary's name does not exist", says: "no such name", zone: &mxZone{address: nowhere}},
		{name: "the primary has no address", says: "has an address", zone: &mxZone{address: func() ([]netip.Addr, error) { return nil, nil }}},
		{name: "the primary has a node's address", says: "no next hop but ourselves", zone: &mxZone{address: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil }}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := &deliverytest.Primary{Extensions: extensions}
			before := func(c *cluster) {
				c.apply("operator", fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, MX: true, Bounce: fsm.BounceAlways}})
				c.apply("b", fsm.ReportNextHop{Node: "b", Domain: testDomain})
			}
			bubbleWith(t, p, before, func(c *Config) {
				c.Router = route.New(route.Config{Resolver: row.zone, Self: func() route.Self {
					return route.Self{Names: []string{"mx1.backup.test"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
				}})
			}, func(c *cluster, a *Agent) {
				ids := c.acceptN(3)
				time.Sleep(5 * 24 * time.Hour)
				for _, id := range ids {
					m := c.message(id)
					if r := m.Recipients[0]; r.State != fsm.RecipientQueued || r.Report != 0 || m.Parts[0].Attempts != 0 || m.PossibleDuplicate {
						t.Errorf("%v after %d attempts: %+v", r.State, m.Parts[0].Attempts, r)
					}
				}
				if hop := c.hop(); hop.State != fsm.NextHopDown || !strings.Contains(hop.Detail, row.says) {
					t.Errorf("the next hop is %v: %s", hop.State, hop.Detail)
				}
				row.zone.repair()
				c.done(ids, 30*time.Second)
				c.exactlyOnce(ids)
			})
		})
	}
}
