package route

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
)

var (
	// ErrNotProven: no resolver was proven to validate, so nothing that any of them
	// says is more than hearsay.
	ErrNotProven = errors.New("no resolver is proven to validate DNSSEC")
	errElsewhere = errors.New("it is not on this host, so that what it says can be changed on the way")
)

// A Proof is by what a resolver is proven to validate. Empty names are the
// defaults.
type Proof struct {
	// Signed is a signed zone: its DNSKEY records must come with the AD bit.
	Signed string
	// Broken is a name with A records whose signature is wrong on purpose: it
	// must not be answered, and it must be when the resolver is told not to check,
	// or it would not be the signature that it failed for.
	Broken string
}

// The defaults of a Proof.
const (
	ProofSigned = "."
	ProofBroken = "dnssec-failed.org"
)

// proven are the resolvers that were.
type proven struct {
	mu      sync.Mutex
	servers []string // host:port
}

func (p *proven) among(servers []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, s := range servers {
		if slices.Contains(p.servers, s) {
			out = append(out, s)
		}
	}
	return out
}

// Prove asks each resolver for what only one that validates answers rightly,
// and returns those that did. From then on these, and no others, are asked for
// what DNSSEC vouches for; before, no such question has an answer. The error says
// what the others did.
func (d *DNS) Prove(ctx context.Context, p Proof) (servers []string, err error) {
	if p.Signed == "" {
		p.Signed = ProofSigned
	}
	if p.Broken == "" {
		p.Broken = ProofBroken
	}
	all, err := d.servers()
	if err != nil {
		return nil, err
	}
	var trouble error
	for _, s := range all {
		if err := d.prove(ctx, s, p); err != nil {
			trouble = errors.Join(trouble, fmt.Errorf("resolver %s: %w", s, err))
			continue
		}
		servers = append(servers, s)
	}
	d.proven.mu.Lock()
	d.proven.servers = servers
	d.proven.mu.Unlock()
	return servers, trouble
}

func (d *DNS) prove(ctx context.Context, server string, p Proof) error {
	if !d.c.TrustPath {
		host, _, err := net.SplitHostPort(server)
		if err != nil {
			return err
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.Unmap().IsLoopback() {
			return errElsewhere
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTotalTimeout)
	defer cancel()
	signed, err := d.askOne(ctx, server, dns.CanonicalName(p.Signed), dns.TypeDNSKEY, validated)
	switch {
	case err != nil:
		return fmt.Errorf("DNSKEY of %s: %w", p.Signed, err)
	case !has(signed, dns.TypeDNSKEY):
		return fmt.Errorf("DNSKEY of %s: no records", p.Signed)
	case !signed.AuthenticatedData:
		return fmt.Errorf("does not validate: DNSKEY of %s comes without the AD bit", p.Signed)
	}
	broken := dns.CanonicalName(p.Broken)
	answer, err := d.askOne(ctx, server, broken, dns.TypeA, validated)
	var rcode rcodeError
	switch {
	case err == nil:
		return fmt.Errorf("does not validate: it gives %d records at %s, whose signature is wrong", len(answer.Answer), p.Broken)
	case !errors.As(err, &rcode) || rcode != dns.RcodeServerFailure:
		return fmt.Errorf("%s, whose signature is wrong: %w", p.Broken, err)
	}
	switch answer, err = d.askOne(ctx, server, broken, dns.TypeA, unexamined); {
	case err != nil:
		return fmt.Errorf("%s, unexamined: %w", p.Broken, err)
	case !has(answer, dns.TypeA):
		return fmt.Errorf("%s, unexamined: no records", p.Broken)
	}
	return nil
}

func has(m *dns.Msg, kind uint16) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == kind })
}

// tlsaMax is how many TLSA records of a host are looked at.
const tlsaMax = 64

// TLSA looks up the TLSA records of a hop (RFC 7672 section 2). It asks again
// for all that led to the hop, and believes nothing of what was found before
// without DNSSEC.
func (d *DNS) TLSA(ctx context.Context, domain fsm.Domain, hop Hop) tlspolicy.TLSA {
	out, err := d.tlsa(ctx, domain, hop)
	if err != nil {
		return tlspolicy.TLSA{Status: tlspolicy.TLSAUnknown, Err: err}
	}
	return out
}

func (d *DNS) tlsa(ctx context.Context, domain fsm.Domain, hop Hop) (tlspolicy.TLSA, error) {
	none := tlspolicy.TLSA{Status: tlspolicy.TLSANone}
	host := strings.ToLower(strings.TrimSuffix(hop.Host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return none, fmt.Errorf("%s is an address, and has no TLSA records", host)
	}
	names := []string{host}
	if domain.MX {
		names = append(names, string(domain.Name))
		secure, err := d.secureMX(ctx, string(domain.Name), host)
		if err != nil || !secure {
			return none, err
		}
	}
	bases, err := d.tlsaBases(ctx, host)
	if err != nil {
		return none, err
	}
	for _, base := range bases {
		at := "_" + strconv.Itoa(int(hop.Address.Port())) + "._tcp." + base
		found, err := d.find(ctx, at, dns.TypeTLSA, validated)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return none, err
		}
		if !found.secure || len(found.records) == 0 {
			continue
		}
		out := tlspolicy.TLSA{Status: tlspolicy.TLSAFound, Base: base, Names: names, Records: tlsaOf(found.records)}
		if base != host {
			out.Names = append(out.Names, base)
		}
		return out, nil
	}
	return none, nil
}

// secureMX reports whether DNSSEC vouches for the domain's MX records, or for
// that it has none. Where it does they must name the host: what led to another
// one was forged, or is out of date.
func (d *DNS) secureMX(ctx context.Context, domain, host string) (bool, error) {
	found, err := d.find(ctx, domain, dns.TypeMX, validated)
	if err != nil || !found.secure {
		return false, err
	}
	records := mxOf(found.records)
	if len(records) == 0 { // The implicit MX.
		records = []MX{{Host: domain}}
	}
	if !slices.ContainsFunc(records, func(m MX) bool { return m.Host == host }) {
		return false, fmt.Errorf("the signed MX records of %s do not name %s", domain, host)
	}
	return true, nil
}

// tlsaBases returns the names below which a host's TLSA records may stand, the
// one to prefer first (RFC 7672 sections 2.2.2 and 2.2.3): the end of its CNAMEs, where
// DNSSEC vouches for them and for the addresses, then the host itself. There are
// none where the host's zone is not signed: its servers may be such as fail when
// they are asked for a TLSA record.
func (d *DNS) tlsaBases(ctx context.Context, host string) ([]string, error) {
	var trouble error
	failures := 0
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		found, err := d.find(ctx, host, kind, validated)
		switch {
		case err != nil:
			trouble = errors.Join(trouble, err)
			failures++
		case found.secure && found.alias:
			return []string{found.name, host}, nil
		case found.secure:
			return []string{host}, nil
		case found.alias:
			// The host's own zone may be signed where the zone is not that it points
			// to.
			own, err := d.find(ctx, host, dns.TypeCNAME, validated)
			if err != nil {
				return nil, err
			}
			if own.secure && len(own.records) > 0 {
				return []string{host}, nil
			}
		}
	}
	if failures == 2 {
		return nil, trouble
	}
	return nil, nil
}

func tlsaOf(records []dns.RR) []tlspolicy.TLSARecord {
	var out []tlspolicy.TLSARecord
	for _, rr := range records[:min(len(records), tlsaMax)] {
		if r, ok := rr.(*dns.TLSA); ok {
			data, err := hex.DecodeString(r.Certificate)
			if err != nil {
				data = nil // Unusable.
			}
			out = append(out, tlspolicy.TLSARecord{Usage: r.Usage, Selector: r.Selector, Matching: r.MatchingType, Data: data})
		}
	}
	return out
}

// TXT returns the TXT records of a name, each in one piece. A name that does not
// exist has none.
func (d *DNS) TXT(ctx context.Context, name string) ([]string, error) {
	records, err := d.lookup(ctx, name, dns.TypeTXT)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, rr := range records {
		if r, ok := rr.(*dns.TXT); ok {
			out = append(out, strings.Join(r.Txt, ""))
		}
	}
	return out, nil
}
