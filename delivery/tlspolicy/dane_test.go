package tlspolicy

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
)

// record makes a TLSA record of a certificate.
func record(usage, selector, matching uint8, c *x509.Certificate) TLSARecord {
	data := c.Raw
	if selector == selectKey {
		data = c.RawSubjectPublicKeyInfo
	}
	switch matching {
	case matchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case matchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return TLSARecord{usage, selector, matching, slices.Clone(data)}
}

func daneHop(records ...TLSARecord) Hop {
	return Hop{
		Domain: "example.test", Host: "primary.test", ByMX: true, Now: now,
		TLSA: TLSA{Status: TLSAFound, Base: "base.test", Names: []string{"base.test", "primary.test", "example.test"}, Records: records},
	}
}

func TestRFC7672Authentication(t *testing.T) {
	root := newAuthority(t, "root")
	inner := root.Below(t, "inner")
	stranger := newAuthority(t, "stranger")
	primary := template{Names: []string{"primary.test"}}
	good := inner.Issue(t, primary)
	over := template{Names: []string{"primary.test"}, From: now.AddDate(-2, 0, 0), To: now.AddDate(-1, 0, 0)}
	selfMade := root.Issue(t, template{Names: []string{"else.test"}, SelfMade: true})
	short := inner.Issue(t, primary)
	short.Certificate = short.Certificate[:2] // without the root
	altered := record(usageEE, selectKey, matchSHA256, good.Leaf)
	altered.Data[0] ^= 1
	type row struct {
		name        string
		records     []TLSARecord
		certificate tls.Certificate
		want        Result
	}
	rows := []row{
		// Section 3.1.1: neither name nor date.
		{"EE, expired", []TLSARecord{record(3, 1, 1, selfMade.Leaf)}, selfMade, ""},
		{"EE among others", []TLSARecord{record(3, 1, 1, root.Cert), record(2, 0, 1, stranger.Cert), record(3, 1, 1, good.Leaf)}, good, ""},
		{"EE of another", []TLSARecord{record(3, 1, 1, selfMade.Leaf)}, good, CertificateNotTrusted},
		{"EE, one bit", []TLSARecord{altered}, good, CertificateNotTrusted},
		{"EE of the authority", []TLSARecord{record(3, 1, 1, inner.Cert)}, good, CertificateNotTrusted},
		// Section 3.1.2: both.
		{"TA in the middle", []TLSARecord{record(2, 1, 1, inner.Cert)}, good, ""},
		{"TA, root", []TLSARecord{record(2, 0, 1, root.Cert)}, good, ""},
		{"TA, base domain", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, template{Names: []string{"base.test"}}), ""},
		{"TA, relay domain", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, template{Names: []string{"example.test"}}), ""},
		{"TA, wildcard", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, template{Names: []string{"*.test"}}), ""},
		{"TA, other name", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, template{Names: []string{"else.test"}}), CertificateHostMismatch},
		{"TA, below the relay domain", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, template{Names: []string{"mx.example.test"}}), CertificateHostMismatch},
		{"TA, expired", []TLSARecord{record(2, 0, 1, root.Cert)}, inner.Issue(t, over), CertificateExpired},
		{"TA of another", []TLSARecord{record(2, 0, 1, stranger.Cert)}, good, CertificateNotTrusted},
		{"TA of the server itself", []TLSARecord{record(2, 0, 1, good.Leaf)}, good, CertificateNotTrusted},
		{"TA that was not sent", []TLSARecord{record(2, 0, 1, root.Cert)}, short, CertificateNotTrusted},
		{"TA that was not sent, whole in the record", []TLSARecord{record(2, 0, 0, root.Cert)}, short, ""},
		// An authority that is sent along, and has signed nothing of this.
		{"TA beside the chain", []TLSARecord{record(2, 0, 1, stranger.Cert)}, with(good, stranger), CertificateNotTrusted},
		{"nothing signed by it", []TLSARecord{record(2, 0, 1, stranger.Cert)}, with(selfMade, stranger), CertificateNotTrusted},
		// RFC 7671 section 9: of two digests the stronger counts.
		{"weaker digest of a stale record", []TLSARecord{record(3, 1, 1, good.Leaf), record(3, 1, 2, root.Cert)}, good, CertificateNotTrusted},
		{"stronger digest", []TLSARecord{record(3, 1, 1, root.Cert), record(3, 1, 2, good.Leaf)}, good, ""},
		{"other selector", []TLSARecord{record(3, 1, 1, good.Leaf), record(3, 0, 2, root.Cert)}, good, ""},
		{"unusable beside usable", []TLSARecord{record(1, 1, 1, good.Leaf), {3, 9, 9, nil}, record(3, 1, 1, selfMade.Leaf)}, good, CertificateNotTrusted},
	}
	for selector := range uint8(2) {
		for matching := range uint8(3) {
			rows = append(rows,
				row{"EE, each kind", []TLSARecord{record(3, selector, matching, good.Leaf)}, good, ""},
				row{"EE, each kind, of another", []TLSARecord{record(3, selector, matching, selfMade.Leaf)}, good, CertificateNotTrusted},
				row{"TA, each kind", []TLSARecord{record(2, selector, matching, inner.Cert)}, good, ""},
				row{"TA, each kind, of another", []TLSARecord{record(2, selector, matching, stranger.Cert)}, good, CertificateNotTrusted})
		}
	}
	for _, r := range rows {
		d, err := Policy{Mode: DANE}.Decide(daneHop(r.records...))
		if err != nil || d.Config == nil || d.Trouble != nil || d.Source != FromTLSA || d.Config.ServerName != "base.test" {
			t.Errorf("%s: %+v %v", r.name, d, err)
			continue
		}
		if got := resultFrom(t, d, state(t, r.certificate)); got != r.want {
			t.Errorf("%s %v: %q, want %q", r.name, r.records[0], got, r.want)
		}
	}
}

// with sends another authority's certificate along.
func with(c tls.Certificate, a *deliverytest.Authority) tls.Certificate {
	c.Certificate = append(slices.Clone(c.Certificate), a.Cert.Raw)
	return c
}

// RFC 7672 section 2.2: records none of which is usable demand TLS, and
// authenticate nobody.
func TestRFC7672UnusableRecords(t *testing.T) {
	a := newAuthority(t, "a")
	leaf := a.Issue(t, template{Names: []string{"primary.test"}}).Leaf
	cut := record(3, 1, 1, leaf)
	cut.Data = cut.Data[1:]
	for _, records := range [][]TLSARecord{
		{record(0, 1, 1, leaf)}, {record(1, 1, 1, leaf)}, {{3, 1, 3, make([]byte, 32)}}, {{3, 2, 1, make([]byte, 32)}}, {{4, 1, 1, make([]byte, 32)}},
		{cut}, {{3, 1, 1, nil}}, {{3, 0, 0, []byte("no certificate")}}, {{2, 1, 0, []byte("no key")}}, {{3, 1, 2, make([]byte, 32)}},
		{record(0, 1, 1, leaf), cut, {255, 255, 255, []byte("x")}}, nil,
	} {
		d, err := Policy{Mode: DANE}.Decide(daneHop(records...))
		if err != nil || d.Config == nil || d.Config.VerifyConnection != nil || d.Trouble == nil || d.Trouble.Result != TLSAInvalid {
			t.Errorf("%v: %+v %v", records, d, err)
		}
	}
}

func TestRFC7672Status(t *testing.T) {
	hop := daneHop()
	hop.TLSA = TLSA{Status: TLSANone}
	if d, err := (Policy{Mode: DANE}).Decide(hop); err != nil || d.Config != nil || d.Source != FromNobody {
		t.Errorf("none: %+v %v", d, err)
	}
	bogus := errors.New("SERVFAIL")
	for _, unknown := range []TLSA{{}, {Err: bogus}, {Status: TLSAUnknown, Base: "base.test", Records: []TLSARecord{{3, 1, 1, make([]byte, 32)}}}, {Status: 9}} {
		hop.TLSA = unknown
		d, err := Policy{Mode: DANE}.Decide(hop)
		var f *Failure
		if !errors.As(err, &f) || f.Result != DNSSECInvalid || d.Config != nil || unknown.Err != nil && !errors.Is(err, bogus) {
			t.Errorf("%+v: %+v %v", unknown, d, err)
		}
	}
}
