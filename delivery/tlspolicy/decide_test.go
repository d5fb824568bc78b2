package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
)

// resultFrom is what a decision says of a session, "" for nothing.
func resultFrom(t *testing.T, d Decision, s tls.ConnectionState) Result {
	t.Helper()
	if d.Config == nil {
		t.Fatal("TLS is opportunistic")
	}
	if !d.Config.InsecureSkipVerify || d.Config.MinVersion < tls.VersionTLS12 {
		t.Fatalf("settings: %+v", d.Config)
	}
	if d.Config.VerifyConnection == nil {
		return ""
	}
	err := d.Config.VerifyConnection(s)
	if err == nil {
		return ""
	}
	var f *Failure
	if !errors.As(err, &f) || f.Host == "" || f.Source == "" || f.Err == nil {
		t.Fatalf("refused by %#v", err)
	}
	return f.Result
}

func TestOpportunisticAndRequire(t *testing.T) {
	hop := Hop{Domain: "example.test", Host: "primary.test", Now: now}
	d, err := Policy{}.Decide(hop)
	if err != nil || d.Config != nil || d.Judge != nil || d.Trouble != nil || d.Source != FromNobody {
		t.Errorf("opportunistic: %+v %v", d, err)
	}
	d, err = Policy{Mode: Require}.Decide(hop)
	if err != nil || d.Config == nil || d.Config.ServerName != "primary.test" {
		t.Fatalf("require: %+v %v", d, err)
	}
	selfMade := newAuthority(t, "nobody").Issue(t, template{SelfMade: true, Names: []string{"other.test"}})
	if r := resultFrom(t, d, state(t, selfMade)); r != "" {
		t.Errorf("require looks at the certificate: %s", r)
	}
	if _, err := (Policy{Mode: 77}).Decide(hop); err == nil {
		t.Error("a mode that nobody knows permits delivery")
	}
}

func TestVerify(t *testing.T) {
	a, other := newAuthority(t, "a"), newAuthority(t, "other")
	inner := a.Below(t, "inner")
	good := a.Issue(t, template{Names: []string{"primary.test"}})
	over := a.Issue(t, template{Names: []string{"other.test"}, SelfMade: true, From: now.AddDate(-2, 0, 0), To: now.AddDate(-1, 0, 0)})
	for _, row := range []struct {
		name        string
		p           Policy
		certificate tls.Certificate
		change      func(*Hop)
		want        Result
	}{
		{name: "authority", p: Policy{CAs: a.PEM()}, certificate: good},
		{name: "through another authority", p: Policy{CAs: a.PEM()}, certificate: inner.Issue(t, template{Names: []string{"primary.test"}})},
		{name: "wildcard", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"*.test"}})},
		{name: "second of two authorities", p: Policy{CAs: other.PEM() + a.PEM()}, certificate: good},
		{name: "expired", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"primary.test"}, From: now.AddDate(-1, 0, 0), To: now.AddDate(0, 0, -1)}), want: CertificateExpired},
		{name: "not yet", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"primary.test"}, From: now.AddDate(0, 0, 1), To: now.AddDate(1, 0, 0)}), want: CertificateExpired},
		{name: "other name", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"www.test"}}), want: CertificateHostMismatch},
		{name: "common name only", p: Policy{CAs: a.PEM(), Names: []string{"server"}}, certificate: a.Issue(t, template{}), want: CertificateHostMismatch},
		{name: "self-signed", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"primary.test"}, SelfMade: true}), want: CertificateNotTrusted},
		{name: "other authority", p: Policy{CAs: a.PEM()}, certificate: other.Issue(t, template{Names: []string{"primary.test"}}), want: CertificateNotTrusted},
		{name: "no chain", p: Policy{CAs: a.PEM()}, certificate: withoutChain(inner.Issue(t, template{Names: []string{"primary.test"}})), want: CertificateNotTrusted},
		{name: "a configured authority stands in the place of the public ones", p: Policy{CAs: other.PEM()}, certificate: good,
			change: func(h *Hop) { h.Roots = a.Pool() }, want: CertificateNotTrusted},
		{name: "public authority", certificate: good, change: func(h *Hop) { h.Roots = a.Pool() }},
		{name: "other public authority", certificate: good, change: func(h *Hop) { h.Roots = other.Pool() }, want: CertificateNotTrusted},
		{name: "none of the host's authorities", certificate: good, want: CertificateNotTrusted},
		{name: "configured name", p: Policy{CAs: a.PEM(), Names: []string{"x.test", "mail.example.test"}}, certificate: a.Issue(t, template{Names: []string{"mail.example.test"}})},
		{name: "configured name, not the hop's", p: Policy{CAs: a.PEM(), Names: []string{"mail.example.test"}}, certificate: good, want: CertificateHostMismatch},
		{name: "below a configured name", p: Policy{CAs: a.PEM(), Names: []string{".example.test"}}, certificate: a.Issue(t, template{Names: []string{"a.mail.example.test"}})},
		{name: "not below a configured name", p: Policy{CAs: a.PEM(), Names: []string{".example.test"}}, certificate: a.Issue(t, template{Names: []string{"badexample.test", "example.test"}}), want: CertificateHostMismatch},
		{name: "address", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Addrs: []net.IP{net.ParseIP("192.0.2.10")}}), change: func(h *Hop) { h.Host = "192.0.2.10" }},
		{name: "address in brackets", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Addrs: []net.IP{net.ParseIP("2001:db8::1")}}), change: func(h *Hop) { h.Host = "[2001:db8::1]" }},
		{name: "other address", p: Policy{CAs: a.PEM()}, certificate: good, change: func(h *Hop) { h.Host = "192.0.2.10" }, want: CertificateHostMismatch},
		// Fault 46: MX records that somebody forged lead to a host whose certificate
		// is in order, for its own name.
		{name: "forged MX", p: Policy{CAs: a.PEM()}, certificate: good, change: func(h *Hop) { h.ByMX = true }, want: CertificateHostMismatch},
		{name: "forged MX, public authority", certificate: good, change: func(h *Hop) { h.ByMX, h.Roots = true, a.Pool() }, want: CertificateHostMismatch},
		{name: "MX below the domain", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"mx.example.test"}}), change: func(h *Hop) { h.ByMX = true }},
		{name: "MX for the domain", p: Policy{CAs: a.PEM()}, certificate: a.Issue(t, template{Names: []string{"example.test"}}), change: func(h *Hop) { h.ByMX = true }},
		{name: "MX for a configured name", p: Policy{CAs: a.PEM(), Names: []string{"primary.test"}}, certificate: good, change: func(h *Hop) { h.ByMX = true }},
		{name: "pin", p: Policy{Pins: []Pin{{1}, PinOf(good.Leaf)}}, certificate: good},
		{name: "pin of another key", p: Policy{Pins: []Pin{{1}}}, certificate: good, want: CertificateNotTrusted},
		{name: "pin of the authority", p: Policy{Pins: []Pin{PinOf(a.Cert)}}, certificate: good, want: CertificateNotTrusted},
		{name: "pin of what nobody signed and is over", p: Policy{Pins: []Pin{PinOf(over.Leaf)}}, certificate: over},
		{name: "pin or authority: by authority", p: Policy{CAs: a.PEM(), Pins: []Pin{{1}}}, certificate: good},
		{name: "pin or authority: by pin", p: Policy{CAs: other.PEM(), Pins: []Pin{PinOf(good.Leaf)}}, certificate: good},
		{name: "pin or authority: neither", p: Policy{CAs: other.PEM(), Pins: []Pin{{1}}}, certificate: good, want: CertificateNotTrusted},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.p.Mode = Verify
			if err := row.p.Check(); err != nil {
				t.Fatal(err)
			}
			hop := Hop{Domain: "example.test", Host: "primary.test", Now: now}
			if row.change != nil {
				row.change(&hop)
			}
			d, err := row.p.Decide(hop)
			if err != nil {
				t.Fatal(err)
			}
			if got := resultFrom(t, d, state(t, row.certificate)); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
			// The same through a handshake.
			err = handshake(d.Config, &tls.Config{Certificates: []tls.Certificate{row.certificate}})
			if row.want == "" {
				if err != nil {
					t.Errorf("handshake: %v", err)
				}
			} else if f := d.Explain(err); err == nil || f.Result != row.want {
				t.Errorf("handshake: %v", err)
			}
		})
	}
}

func withoutChain(c tls.Certificate) tls.Certificate {
	c.Certificate = c.Certificate[:1]
	return c
}

// A policy that cannot be read permits nothing, also where nobody checked it.
func TestVerifyWithBrokenAuthorities(t *testing.T) {
	for _, cas := range []string{"nonsense", pemOf([]byte("nonsense"))} {
		if d, err := (Policy{Mode: Verify, CAs: cas}).Decide(Hop{Host: "primary.test", Now: now}); err == nil || d.Config != nil {
			t.Errorf("%.20q: %+v", cas, d)
		}
	}
}

func TestOldVersionsDoNotCount(t *testing.T) {
	a := newAuthority(t, "a")
	good := a.Issue(t, template{Names: []string{"primary.test"}})
	for _, p := range []Policy{{Mode: Require}, {Mode: Verify, CAs: a.PEM()}} {
		d, err := p.Decide(Hop{Host: "primary.test", Now: now})
		if err != nil {
			t.Fatal(err)
		}
		err = handshake(d.Config, &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		if err == nil || d.Explain(err).Result != ValidationFailure {
			t.Errorf("%s: %v", p.Mode, err)
		}
		err = handshake(d.Config, &tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12})
		if err != nil {
			t.Errorf("%s with TLS 1.2: %v", p.Mode, err)
		}
	}
}

func TestFailureReads(t *testing.T) {
	d, err := Policy{Mode: Verify}.Decide(Hop{Host: "primary.test", Now: now, Roots: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.InTheClear().Error(); got != "TLS policy: primary.test: starttls-not-supported: no STARTTLS" {
		t.Error(got)
	}
	f := d.Explain(net.ErrClosed)
	if f.Result != ValidationFailure || !errors.Is(f, net.ErrClosed) || !strings.Contains(f.Error(), "validation-failure") {
		t.Errorf("%v", f)
	}
}
