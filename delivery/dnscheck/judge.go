package dnscheck

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Judge makes findings of what was seen.
func Judge(f Facts) Report {
	c := newCluster(f)
	var r Report
	for _, d := range f.Domains {
		r.Domains = append(r.Domains, DomainReport{d.Name, c.domain(d)})
	}
	for _, n := range f.Nodes {
		r.Nodes = append(r.Nodes, NodeReport{n.Name, n.Host, c.node(n)})
	}
	return r
}

// A cluster is the Facts, and what follows from all of them together.
type cluster struct {
	Facts
	// dane is a host of which there are TLSA records that are signed, "" where
	// there is none: where one MX host has some, the others need them, or who
	// wants to read along sends mail their way.
	dane string
}

func newCluster(f Facts) *cluster {
	c := &cluster{Facts: f}
	for _, n := range f.Nodes {
		if c.dane == "" && n.TLSA.Signed && len(n.TLSA.Records) > 0 {
			c.dane = n.Host
		}
	}
	for _, d := range f.Domains {
		for _, m := range d.MX {
			if c.dane == "" && d.TLSA[m.Host] {
				c.dane = m.Host
			}
		}
	}
	return c
}

// whose returns the node that an address belongs to, nil where it is a stranger's.
// What a node says of itself counts before what DNS says of it.
func (c *cluster) whose(a netip.Addr) *NodeFacts {
	for i := range c.Nodes {
		if slices.Contains(c.Nodes[i].Addresses, a) {
			return &c.Nodes[i]
		}
	}
	for i := range c.Nodes {
		if slices.Contains(c.Nodes[i].DNS.Addresses, a) {
			return &c.Nodes[i]
		}
	}
	return nil
}

// named returns the node of a host name, nil where it is a stranger's.
func (c *cluster) named(host string) *NodeFacts {
	for i := range c.Nodes {
		if n := &c.Nodes[i]; n.Host != "" && strings.EqualFold(n.Host, host) {
			return n
		}
	}
	return nil
}

// public reports whether others on the Internet could reach an address.
func public(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() }

func addressRecord(host string, a netip.Addr) Record {
	r := Record{Name: host + ".", Type: "A", Data: a.String()}
	if a.Is6() {
		r.Type = "AAAA"
	}
	return r
}

// reverseName is where an address's PTR records are (RFC 1035 section 3.5, RFC 3596
// section 2.5).
func reverseName(a netip.Addr) string {
	var b strings.Builder
	raw := a.AsSlice()
	for _, octet := range slices.Backward(raw) {
		if a.Is4() {
			fmt.Fprintf(&b, "%d.", octet)
		} else {
			fmt.Fprintf(&b, "%x.%x.", octet&0xf, octet>>4)
		}
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa."
	}
	return b.String() + "ip6.arpa."
}

// A findings collects them.
type findings []Finding

func (f *findings) add(l Level, check string, records []Record, format string, args ...any) {
	*f = append(*f, Finding{Level: l, Check: check, Text: fmt.Sprintf(format, args...), Records: records})
}

// fineUnless adds that something is fine, where nothing was found against it.
func (f *findings) fineUnless(before int, check, format string, args ...any) {
	if len(*f) == before {
		f.add(Fine, check, nil, format, args...)
	}
}

func removal(r Record) Record {
	r.Remove = true
	return r
}

// list is a list for people.
func list[T fmt.Stringer](all []T) string {
	var words []string
	for _, v := range all {
		words = append(words, v.String())
	}
	return strings.Join(words, ", ")
}
