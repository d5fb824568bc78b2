package route

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
)

// What follows is for who looks whether DNS is as it should be. Whether a zone is
// signed is what the resolver says: it may be shown, and nothing may rest on it.

// A Host is what DNS has at the name of a host.
type Host struct {
	Addresses []netip.Addr
	Alias     string // what its CNAME leads to in the end; "" where it is none
	Signed    bool   // the resolver says that DNSSEC vouches for all of it
}

// Host looks up both families at a name. Where one of them fails, it returns what
// was found beside the error.
func (d *DNS) Host(ctx context.Context, name string) (Host, error) {
	host := Host{Signed: true}
	var trouble error
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		found, err := d.find(ctx, name, kind, claimed)
		trouble = errors.Join(trouble, err)
		host.Signed = host.Signed && found.secure
		if found.alias {
			host.Alias = found.name
		}
		for _, rr := range found.records {
			var raw []byte
			switch r := rr.(type) {
			case *dns.A:
				raw = r.A
			case *dns.AAAA:
				raw = r.AAAA
			}
			if a, ok := netip.AddrFromSlice(raw); ok {
				host.Addresses = append(host.Addresses, a.Unmap())
			}
		}
	}
	return host, trouble
}

// Names returns the names that the PTR records of an address give it. An address
// that has none gives none and no error.
func (d *DNS) Names(ctx context.Context, address netip.Addr) ([]string, error) {
	at, err := dns.ReverseAddr(address.Unmap().String())
	if err != nil {
		return nil, err
	}
	records, err := d.lookup(ctx, at, dns.TypePTR)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, rr := range records {
		if p, ok := rr.(*dns.PTR); ok {
			out = append(out, strings.ToLower(strings.TrimSuffix(p.Ptr, ".")))
		}
	}
	return out, nil
}

// TLSARecords returns the TLSA records at a name, whether or not DNSSEC vouches for
// them; signed is what the resolver says of that. A name that has none gives none
// and no error.
func (d *DNS) TLSARecords(ctx context.Context, name string) (records []tlspolicy.TLSARecord, signed bool, err error) {
	found, err := d.find(ctx, name, dns.TypeTLSA, claimed)
	if errors.Is(err, ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return tlsaOf(found.records), found.secure, nil
}

// Validates reports whether the resolver says of the root's keys that DNSSEC vouches
// for them. Where it does not, it says so of nothing.
func (d *DNS) Validates(ctx context.Context) bool {
	found, err := d.find(ctx, ".", dns.TypeDNSKEY, claimed)
	return err == nil && found.secure && len(found.records) > 0
}
