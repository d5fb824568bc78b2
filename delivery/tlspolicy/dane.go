package tlspolicy

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// A TLSAStatus is how far it is known what TLSA records a hop has.
type TLSAStatus uint8

// The statuses. The zero value permits nothing.
const (
	// TLSAUnknown: nobody asked, the lookup failed, or the answer was bogus. An
	// attacker can bring that about, so the hop is not used (RFC 7672 section
	// 2.1).
	TLSAUnknown TLSAStatus = iota
	// TLSANone: DNSSEC says that there are none, or that it does not vouch for
	// the zone.
	TLSANone
	// TLSAFound: DNSSEC vouches for the records, and for all that led to them.
	TLSAFound
)

// TLSA is what DNS says of a hop.
type TLSA struct {
	Status TLSAStatus
	// Base is the TLSA base domain: the name below which the records stand, and
	// the one that the handshake asks for (RFC 7672 section 8.1).
	Base string
	// Names are those that a certificate of a trust anchor may be for: the base
	// domain, the hop's name, and the relay domain where MX records led from it to
	// the hop (section 3.2.2).
	Names   []string
	Records []TLSARecord
	Err     error // why it is not known
}

// A TLSARecord is one TLSA record (RFC 6698 section 2).
type TLSARecord struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// The values that SMTP has a use for.
const (
	usageTA = 2 // DANE-TA: an authority of the domain's own
	usageEE = 3 // DANE-EE: the server's certificate or key

	selectCertificate = 0
	selectKey         = 1

	matchExact  = 0
	matchSHA256 = 1
	matchSHA512 = 2
)

// usable reports whether a record can say anything here. Usages 0 and 1 lean on
// the public authorities, which SMTP does not agree upon (RFC 7672 section
// 3.1.3).
func (r TLSARecord) usable() bool {
	if r.Usage != usageTA && r.Usage != usageEE || r.Selector > selectKey {
		return false
	}
	switch r.Matching {
	case matchSHA256:
		return len(r.Data) == sha256.Size
	case matchSHA512:
		return len(r.Data) == sha512.Size
	case matchExact:
		var err error
		if r.Selector == selectCertificate {
			_, err = x509.ParseCertificate(r.Data)
		} else {
			_, err = x509.ParsePKIXPublicKey(r.Data)
		}
		return err == nil
	}
	return false
}

// matches reports whether a record is of this certificate.
func (r TLSARecord) matches(c *x509.Certificate) bool {
	data := c.Raw
	if r.Selector == selectKey {
		data = c.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case matchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case matchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return bytes.Equal(r.Data, data)
}

// usable returns the records that count: the usable ones, of those with the same
// usage and selector only the strongest digests (RFC 7671 section 9), beside
// what is given whole.
func (t TLSA) usable() []TLSARecord {
	type kind struct{ usage, selector uint8 }
	strongest := map[kind]uint8{}
	for _, r := range t.Records {
		if r.usable() {
			k := kind{r.Usage, r.Selector}
			strongest[k] = max(strongest[k], r.Matching)
		}
	}
	var out []TLSARecord
	for _, r := range t.Records {
		if r.usable() && (r.Matching == matchExact || r.Matching == strongest[kind{r.Usage, r.Selector}]) {
			out = append(out, r)
		}
	}
	return out
}

// errNoMatch is a CertificateNotTrusted: the domain vouches for another
// certificate.
var errNoMatch = errors.New("no TLSA record is of the certificate")

// dane decides by TLSA records.
func (d Decision) dane(h Hop) (Decision, error) {
	d.Source = FromTLSA
	switch h.TLSA.Status {
	case TLSANone:
		d.Source = FromNobody
		return d, nil
	case TLSAFound:
	default:
		err := h.TLSA.Err
		if err == nil {
			err = errors.New("TLSA records were not looked up")
		}
		return Decision{}, &Failure{DNSSECInvalid, FromTLSA, h.Host, err}
	}
	records := h.TLSA.usable()
	if len(records) == 0 {
		// RFC 7672 section 2.2: TLS, and nobody can say whose.
		d.demand(h, nil)
		d.Trouble = &Failure{TLSAInvalid, FromTLSA, h.Host, fmt.Errorf("none of %d TLSA records is usable", len(h.TLSA.Records))}
	} else {
		d.demand(h, func(s tls.ConnectionState) error { return vouchedFor(s, records, h.TLSA.Names, h.Now) })
	}
	d.Config.ServerName = serverName(h.TLSA.Base)
	return d, nil
}

// vouchedFor is nil for a session whose certificate one of the records vouches
// for. DANE-EE asks for neither name nor date (RFC 7672 section 3.1.1); DANE-TA
// asks for both, in a chain that ends at the authority (section 3.1.2), which
// must be sent along unless the record holds the whole of it.
func vouchedFor(s tls.ConnectionState, records []TLSARecord, names []string, now time.Time) error {
	if len(s.PeerCertificates) == 0 {
		return errNoCertificate
	}
	anchors, found := x509.NewCertPool(), false
	for _, r := range records {
		if r.Usage == usageEE {
			if r.matches(s.PeerCertificates[0]) {
				return nil
			}
			continue
		}
		for _, c := range s.PeerCertificates[1:] {
			if r.matches(c) {
				anchors.AddCert(c)
				found = true
			}
		}
		if r.Selector == selectCertificate && r.Matching == matchExact {
			if c, err := x509.ParseCertificate(r.Data); err == nil {
				anchors.AddCert(c)
				found = true
			}
		}
	}
	if !found {
		return errNoMatch
	}
	return authenticated(s, anchors, names, now)
}
