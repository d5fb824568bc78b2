package dnscheck

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
)

// node judges one node.
func (c *cluster) node(n NodeFacts) []Finding {
	var f findings
	if n.Host == "" {
		f.add(Warning, CheckAddress, nil, "its host name is not known here, so that nothing could be looked at: it was not seen since the node that answers was started, or its daemon is older")
		return f
	}
	c.addresses(&f, n)
	c.pointers(&f, n)
	c.ports(&f, n)
	c.certificates(&f, n)
	c.tlsa(&f, n)
	return f
}

// translated reports whether a node does not know its public addresses.
func translated(n Node) bool { return !slices.ContainsFunc(n.Addresses, public) }

func (c *cluster) addresses(f *findings, n NodeFacts) {
	var wanted []Record // what should stand there, as far as the node knows
	for _, a := range n.Addresses {
		if public(a) {
			wanted = append(wanted, addressRecord(n.Host, a))
		}
	}
	before := len(*f)
	switch {
	case n.DNS.Err != nil && len(n.DNS.Addresses) == 0 && errors.Is(n.DNS.Err, route.ErrNotFound):
		f.add(Error, CheckAddress, wanted, "%s does not exist in DNS", n.Host)
		return
	case n.DNS.Err != nil && len(n.DNS.Addresses) == 0:
		f.add(Error, CheckAddress, nil, "the addresses of %s could not be looked up: %v", n.Host, n.DNS.Err)
		return
	case len(n.DNS.Addresses) == 0:
		f.add(Error, CheckAddress, wanted, "%s has neither an A nor an AAAA record", n.Host)
		return
	case n.DNS.Err != nil:
		f.add(Warning, CheckAddress, nil, "the addresses of %s could be looked up in part only: %v", n.Host, n.DNS.Err)
	}
	if n.DNS.Alias != "" {
		records := []Record{{Remove: true, Name: n.Host + ".", Type: "CNAME", Data: n.DNS.Alias + "."}}
		records = append(records, wanted...)
		if len(wanted) == 0 {
			for _, a := range n.DNS.Addresses {
				records = append(records, addressRecord(n.Host, a))
			}
		}
		f.add(Warning, CheckAddress, records, "%s is a CNAME: an MX record must not lead to one (RFC 2181 section 10.3), and some senders do not follow it", n.Host)
	}
	for _, a := range n.DNS.Addresses {
		c.address(f, n, a)
	}
	for _, a := range n.Addresses {
		if public(a) && !slices.Contains(n.DNS.Addresses, a) {
			f.add(Warning, CheckAddress, []Record{addressRecord(n.Host, a)}, "the node takes mail at %s too, and DNS does not say so", a)
		}
	}
	f.fineUnless(before, CheckAddress, "%s has %s", n.Host, list(n.DNS.Addresses))
}

// address judges one address that DNS gives a node.
func (c *cluster) address(f *findings, n NodeFacts, a netip.Addr) {
	wrong := []Record{removal(addressRecord(n.Host, a))}
	owner := c.whose(a)
	switch {
	case !public(a):
		f.add(Error, CheckAddress, wrong, "%s is %s, which others cannot reach", n.Host, a)
	case slices.Contains(n.Addresses, a):
	case owner != nil && owner.Name != n.Name && slices.Contains(owner.Addresses, a):
		f.add(Warning, CheckAddress, wrong, "%s is %s, which is node %s", n.Host, a, owner.Name)
	case translated(n.Node): // Who answers there says whether it is right.
	case slices.ContainsFunc(n.Ports, func(p Port) bool { return p.Address == a && strings.EqualFold(p.Name, n.Host) }):
		f.add(Warning, CheckAddress, nil, "%s is %s, where the node answers, and which is not among its own addresses (%s): see smtp_listen and cluster_advertise in its configuration", n.Host, a, list(n.Addresses))
	default:
		f.add(Error, CheckAddress, wrong, "%s is %s, and the node takes mail at %s", n.Host, a, list(n.Addresses))
	}
}

func (c *cluster) pointers(f *findings, n NodeFacts) {
	for _, p := range n.Pointers {
		want := []Record{{Name: reverseName(p.Address), Type: "PTR", Data: n.Host + "."}}
		switch {
		case p.Err != nil:
			f.add(Warning, CheckPTR, nil, "the name of %s could not be looked up: %v", p.Address, p.Err)
		case len(p.Names) == 0:
			f.add(Warning, CheckPTR, want, "%s has no PTR record: a primary, and whoever gets a bounce, may refuse mail from it", p.Address)
		case len(p.Confirmed) == 0:
			for _, name := range p.Names {
				want = append(want, removal(Record{Name: reverseName(p.Address), Type: "PTR", Data: name + "."}))
			}
			f.add(Warning, CheckPTR, want, "%s is called %s, which does not lead back to it", p.Address, strings.Join(p.Names, ", "))
		default:
			f.add(Fine, CheckPTR, nil, "%s is called %s", p.Address, strings.Join(p.Confirmed, ", "))
		}
	}
}

// answers reports whether it was the node that answered at a port.
func answers(n NodeFacts, p Port) bool { return strings.EqualFold(p.Name, n.Host) }

func (c *cluster) ports(f *findings, n NodeFacts) {
	var good []netip.Addr
	for _, p := range n.Ports {
		var stage *smtpclient.StageError
		other := c.named(p.Name)
		switch {
		case p.Name == "" && errors.As(p.Err, &stage) && stage.Reply.Code == 421:
			f.add(Warning, CheckSMTP, nil, "%s takes no mail at present: %s", p.Address, stage.Reply)
		case p.Name == "" && errors.As(p.Err, &stage) && stage.Reply.Code != 0:
			f.add(Error, CheckSMTP, nil, "%s refuses to talk: %s", p.Address, stage.Reply)
		case p.Name == "" && noWay(p.Err):
			f.add(Warning, CheckSMTP, nil, "%s could not be looked at, since this host has no way to it: %v", p.Address, p.Err)
		case p.Name == "" && n.Here && translated(n.Node):
			f.add(Warning, CheckSMTP, nil, "%s does not answer this host, which may be because it is its own, behind address translation: look again from another node (%v)", p.Address, p.Err)
		case p.Name == "":
			f.add(Error, CheckSMTP, nil, "nobody takes mail at %s, as seen from this host: %v", p.Address, p.Err)
		case answers(n, p):
			good = append(good, p.Address)
		case other != nil:
			f.add(Warning, CheckSMTP, nil, "at %s node %s answers", p.Address, other.Name)
		default:
			f.add(Error, CheckSMTP, nil, "at %s another server answers, which calls itself %.100s", p.Address, p.Name)
		}
	}
	if len(good) > 0 {
		f.add(Fine, CheckSMTP, nil, "answers at %s", list(good))
	}
}

// noWay reports whether a connection failed for want of a way out.
func noWay(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// expirySoon is how long before its end a certificate is worth a word: those that
// renew them by themselves do so a month before.
const expirySoon = 14 * 24 * time.Hour

func (c *cluster) certificates(f *findings, n NodeFacts) {
	var good []netip.Addr
	var until time.Time
	for _, p := range n.Ports {
		if !answers(n, p) {
			continue
		}
		switch {
		case !p.StartTLS:
			f.add(Warning, CheckCertificate, nil, "%s does not offer STARTTLS, so that mail comes in the clear: see smtp_cert in the node's configuration", p.Address)
			continue
		case p.TLS == nil || len(p.TLS.PeerCertificates) == 0:
			f.add(Warning, CheckCertificate, nil, "%s offers STARTTLS, and it failed: %v", p.Address, p.Err)
			continue
		case n.TLSA.Signed && c.vouched(n, *p.TLS).err == nil:
			// RFC 7672 section 3.1.1: neither name nor date matter, and to trust an
			// authority is what it does without.
			good = append(good, p.Address)
			continue
		}
		leaf := p.TLS.PeerCertificates[0]
		if err := c.trusted(n.Host, *p.TLS); err != nil {
			f.add(Warning, CheckCertificate, nil, "the certificate that %s shows is not valid for %s (most senders take any): %v", p.Address, n.Host, err)
			continue
		}
		if left := leaf.NotAfter.Sub(c.Now); left < expirySoon {
			f.add(Warning, CheckCertificate, nil, "the certificate that %s shows ends in %d days, on %s", p.Address, int(left/(24*time.Hour)), leaf.NotAfter.UTC().Format(time.DateOnly))
			continue
		}
		good = append(good, p.Address)
		if until.IsZero() || leaf.NotAfter.Before(until) {
			until = leaf.NotAfter
		}
	}
	switch {
	case len(good) > 0 && until.IsZero():
		f.add(Fine, CheckCertificate, nil, "the TLSA records vouch for the certificate at %s", list(good))
	case len(good) > 0:
		f.add(Fine, CheckCertificate, nil, "valid for %s until %s, at %s", n.Host, until.UTC().Format(time.DateOnly), list(good))
	}
}

// trusted is nil for a session with a certificate of a public authority for a name.
func (c *cluster) trusted(name string, s tls.ConnectionState) error {
	d, err := tlspolicy.Policy{Mode: tlspolicy.Verify}.Decide(tlspolicy.Hop{Host: name, Now: c.Now, Roots: c.Roots})
	if err != nil {
		return err
	}
	return cause(d.Config.VerifyConnection(s))
}

// An unvouched is what is wrong with a certificate by the TLSA records.
type unvouched struct {
	err error
	// whose are the domains whose mail it is wrong for; none is any.
	whose []string
}

// vouched has no error for a session whose certificate the node's TLSA records vouch
// for. One of an authority may have the node's name, or that of the domain whose MX
// records led to the node (RFC 7672 section 3.2).
func (c *cluster) vouched(n NodeFacts, s tls.ConnectionState) (u unvouched) {
	if u.err = c.vouchedAs(n, s, n.Host); u.err == nil {
		return unvouched{}
	}
	here := 0
	for _, d := range c.Domains {
		if !slices.ContainsFunc(d.MX, func(m route.MX) bool { return strings.EqualFold(m.Host, n.Host) }) {
			continue
		}
		if here++; c.vouchedAs(n, s, n.Host, string(d.Name)) != nil {
			u.whose = append(u.whose, string(d.Name))
		}
	}
	switch len(u.whose) {
	case here:
		u.whose = nil
	case 0:
		u.err = nil
	}
	return u
}

// vouchedAs is nil where they vouch for it under one of these names.
func (c *cluster) vouchedAs(n NodeFacts, s tls.ConnectionState, names ...string) error {
	d, err := tlspolicy.Policy{Mode: tlspolicy.DANE}.Decide(tlspolicy.Hop{
		Host: n.Host, Now: c.Now, Roots: c.Roots,
		TLSA: tlspolicy.TLSA{Status: tlspolicy.TLSAFound, Base: n.Host, Names: names, Records: n.TLSA.Records},
	})
	switch {
	case err != nil:
		return cause(err)
	case d.Trouble != nil:
		return d.Trouble.Err
	}
	return cause(d.Config.VerifyConnection(s))
}

// cause is what is wrong with a session without the words for those who deliver.
func cause(err error) error {
	var failure *tlspolicy.Failure
	if errors.As(err, &failure) && failure.Err != nil {
		return failure.Err
	}
	return err
}

func tlsaName(host string) string { return "_25._tcp." + host + "." }

// tlsaRecord is the record to have for a certificate: of its key, which outlives a
// renewal that keeps it, and of nothing above it (RFC 7672 section 3.1.1).
func tlsaRecord(host string, s tls.ConnectionState) Record {
	return Record{Name: tlsaName(host), Type: "TLSA", Data: "3 1 1 " + tlspolicy.PinOf(s.PeerCertificates[0]).String()}
}

func (c *cluster) tlsa(f *findings, n NodeFacts) {
	var shown []Port // with a certificate, of the node
	bare := false    // an address at which there is no TLS
	for _, p := range n.Ports {
		switch {
		case answers(n, p) && p.TLS != nil && len(p.TLS.PeerCertificates) > 0:
			shown = append(shown, p)
		case answers(n, p) && !p.StartTLS:
			bare = true
		}
	}
	name := strings.TrimSuffix(tlsaName(n.Host), ".")
	switch {
	case n.TLSA.Err != nil && n.DNS.Signed:
		f.add(Error, CheckTLSA, nil, "%s could not be looked up, and its zone is signed: who uses DANE does not deliver to the node (%v)", name, n.TLSA.Err)
		return
	case n.TLSA.Err != nil:
		f.add(Warning, CheckTLSA, nil, "%s could not be looked up: %v", name, n.TLSA.Err)
		return
	case len(n.TLSA.Records) == 0 && c.dane == "":
		f.add(Fine, CheckTLSA, nil, "no TLSA records, and no other host of the domains has any")
		return
	case len(n.TLSA.Records) == 0:
		var want []Record
		for _, p := range shown {
			want = append(want, tlsaRecord(n.Host, *p.TLS))
		}
		f.add(Warning, CheckTLSA, want, "no TLSA records, while %s has some: mail that would be safe on the way there is not on the way here", c.dane)
		return
	}
	level := Error
	before := len(*f)
	switch {
	case n.TLSA.Signed:
	case c.Validates:
		level = Warning
		f.add(Warning, CheckTLSA, nil, "the records at %s are not signed, so that nobody heeds them: sign the zone, and that of %s", name, n.Host)
	default:
		level = Warning
		f.add(Warning, CheckTLSA, nil, "whether the records at %s are signed could not be seen: the resolver does not validate (see --resolver)", name)
	}
	for _, p := range shown {
		if u := c.vouched(n, *p.TLS); u.err != nil {
			want := []Record{tlsaRecord(n.Host, *p.TLS)}
			for _, r := range n.TLSA.Records {
				want = append(want, removal(Record{Name: tlsaName(n.Host), Type: "TLSA", Data: tlsaData(r)}))
			}
			mail := ""
			if len(u.whose) > 0 {
				mail = " the mail of " + strings.Join(u.whose, ", ")
			}
			f.add(level, CheckTLSA, want, "%s is not of the certificate that %s shows, and who uses DANE does not deliver%s there: %v", name, p.Address, mail, u.err)
		}
	}
	switch {
	case bare:
		f.add(level, CheckTLSA, nil, "there are TLSA records and no STARTTLS: who uses DANE does not deliver to the node")
	case len(shown) == 0:
		f.add(Warning, CheckTLSA, nil, "the records at %s could not be compared: no certificate was seen", name)
	}
	f.fineUnless(before, CheckTLSA, "%s is of the certificate", name)
}

func tlsaData(r tlspolicy.TLSARecord) string {
	return fmt.Sprintf("%d %d %d %x", r.Usage, r.Selector, r.Matching, r.Data)
}
