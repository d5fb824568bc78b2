package sim

import (
	"context"
	"net/netip"
	"os"

	"github.com/holdfast-mx/holdfast/delivery/route"
)

// A zone is the DNS of a world: mail for a domain goes to the host of that name in it.
// A nil zone has nothing, since primaries are configured by address.
type zone map[string]netip.Addr

func (z zone) MX(_ context.Context, domain string) ([]route.MX, error) {
	if _, ok := z[domain]; !ok {
		return nil, os.ErrNotExist
	}
	return []route.MX{{Host: domain, Preference: 10}}, nil
}

func (z zone) Addresses(_ context.Context, host string) ([]netip.Addr, error) {
	if a, ok := z[host]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, os.ErrNotExist
}
