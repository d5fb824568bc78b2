package tlspolicy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const stsExample = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmx: Backup.Example.com\r\nmax_age: 604800\r\n"

func TestRFC8461PolicySyntax(t *testing.T) {
	p, err := ParseSTSPolicy([]byte(stsExample))
	if err != nil || p.Mode != STSModeEnforce || p.MaxAge != 7*24*time.Hour || !slices.Equal(p.MX, []string{"mail.example.com", "*.example.net", "backup.example.com"}) {
		t.Fatalf("%+v %v", p, err)
	}
	for text, want := range map[string]STSMode{
		"version:STSv1\nmode:testing\nmx:a.test\nmax_age:1":                                              STSModeTesting,
		"mode: none\nversion: STSv1\nmax_age: 0\n":                                                       STSModeNone,
		"version: STSv1 \n \nmode: enforce\t\nmx: a.test\nmax_age: 86400\nnew_key: x: y\n":               STSModeEnforce,
		"version: STSv1\nmode: testing\nmode: enforce\nmx: a.test\nmax_age: 1\nmax_age: bad\n":           STSModeTesting,
		"version: STSv1\nmode: enforce\nmx: a.test\nmax_age: 9999999999\n":                               STSModeEnforce,
		"version: STSv1\nmode: none\nmax_age: 31557600\nmx: a.test\n" + strings.Repeat("x: y\n", 10_000): STSModeNone,
	} {
		p, err := ParseSTSPolicy([]byte(text))
		if err != nil || p.Mode != want || p.MaxAge > stsMaxAge {
			t.Errorf("%.80q: %+v %v", text, p, err)
		}
	}
	for _, text := range []string{
		"", "version: STSv1\n", "version: STSv1\nmode: enforce\nmx: a.test\n", "mode: enforce\nmx: a.test\nmax_age: 1\n",
		"version: STSv1\nmode: enforce\nmax_age: 1\n", "version: STSv2\nmode: enforce\nmx: a.test\nmax_age: 1\n",
		"version: STSv1\nmode: Enforce\nmx: a.test\nmax_age: 1\n", "version: STSv1\nmode: none\nmax_age: -1\n",
		"version: STSv1\nmode: none\nmax_age: 1.5\n", "version: STSv1\nmode: none\nmax_age: 99999999999\n",
		"version: STSv1\nmode: enforce\nmx: *\nmax_age: 1\n", "version: STSv1\nmode: enforce\nmx: a.*.test\nmax_age: 1\n",
		"version: STSv1\nmode: enforce\nmx: *.*.test\nmax_age: 1\n", "version: STSv1\nmode: enforce\nmx:\nmax_age: 1\n",
		"<html>", "version: STSv1\nmode: enforce\nmx: a.test\nmax_age: 1\n<html>\n",
		"version: STSv1\nmode: none\nmax_age: 1\n" + strings.Repeat("x: y\n", 14_000),
		"version: STSv1\nmode: enforce\nmax_age: 1\n" + strings.Repeat("mx: a.test\n", stsMXMax+1),
	} {
		if p, err := ParseSTSPolicy([]byte(text)); err == nil {
			t.Errorf("%.80q: %+v", text, p)
		}
	}
}

func FuzzSTSPolicy(f *testing.F) {
	f.Add([]byte(stsExample))
	f.Add([]byte("version: STSv1\nmode: none\nmax_age: 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseSTSPolicy(text)
		if err != nil {
			return
		}
		if p.MaxAge < 0 || p.MaxAge > stsMaxAge || p.Mode != STSModeNone && len(p.MX) == 0 {
			t.Errorf("%+v", p)
		}
		for _, mx := range p.MX {
			if host, wild := strings.CutPrefix(mx, "*."); wild && !p.Covers("any."+host) || !wild && !p.Covers(mx) {
				t.Errorf("%q does not cover itself", mx)
			}
		}
	})
}

func TestRFC8461Patterns(t *testing.T) {
	p := STSPolicy{MX: []string{"mail.example.com", "*.example.net"}}
	for host, want := range map[string]bool{
		"mail.example.com": true, "MAIL.example.com.": true, "a.example.net": true,
		"example.net": false, "a.b.example.net": false, "mail.example.org": false, "x.mail.example.com": false,
		"": false, "net": false, "192.0.2.1": false, "aexample.net": false,
	} {
		if p.Covers(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}

func TestRFC8461Record(t *testing.T) {
	for _, row := range []struct {
		records []string
		id      string
		bad     bool
	}{
		{records: []string{"v=STSv1; id=20160831085700Z;"}, id: "20160831085700Z"},
		{records: []string{"v=STSv1;id=a"}, id: "a"},
		{records: []string{"v=STSv1 ; id=a; x=y ;"}, id: "a"},
		{records: []string{"v=spf1 -all", "v=STSv1; id=b", "google-site-verification=x"}, id: "b"},
		{records: nil}, {records: []string{"v=spf1 -all"}}, {records: []string{"v=STSv11; id=a"}}, {records: []string{" v=STSv1; id=a"}}, {records: []string{"V=STSV1; id=a"}},
		{records: []string{"v=STSv1; id=a", "v=STSv1; id=a"}, bad: true},
		{records: []string{"v=STSv1"}, bad: true}, {records: []string{"v=STSv1;"}, bad: true}, {records: []string{"v=STSv1; id="}, bad: true},
		{records: []string{"v=STSv1; id=a-b"}, bad: true}, {records: []string{"v=STSv1; id=" + strings.Repeat("a", 33)}, bad: true},
	} {
		id, err := ParseSTSRecord(row.records)
		if id != row.id || (err != nil) != row.bad {
			t.Errorf("%q: %q %v", row.records, id, err)
		}
	}
}

func TestMTASTS(t *testing.T) {
	a := newAuthority(t, "public")
	good := a.Issue(t, template{Names: []string{"primary.test"}})
	hop := Hop{Domain: "example.test", Host: "primary.test", ByMX: true, Now: now, Roots: a.Pool()}
	policy := func(mode STSMode, mx ...string) STS {
		return STS{Status: STSFound, Policy: STSPolicy{Mode: mode, MX: mx, MaxAge: time.Hour}}
	}
	certificates := map[string]struct {
		certificate tls.Certificate
		want        Result
	}{
		"good":        {good, ""},
		"expired":     {a.Issue(t, template{Names: []string{"primary.test"}, From: now.AddDate(-1, 0, 0), To: now.AddDate(0, 0, -1)}), CertificateExpired},
		"other name":  {a.Issue(t, template{Names: []string{"mta-sts.example.test", "example.test"}}), CertificateHostMismatch},
		"self-signed": {a.Issue(t, template{Names: []string{"primary.test"}, SelfMade: true}), CertificateNotTrusted},
		"wildcard":    {a.Issue(t, template{Names: []string{"*.test"}}), ""},
	}
	decide := func(s STS) (Decision, error) {
		hop.STS = s
		return Policy{Mode: MTASTS}.Decide(hop)
	}

	for _, s := range []STS{policy(STSModeEnforce, "primary.test"), policy(STSModeEnforce, "x.test", "*.test")} {
		d, err := decide(s)
		if err != nil || d.Config == nil || d.Config.ServerName != "primary.test" || d.Source != FromSTS || d.Judge != nil || d.Trouble != nil {
			t.Fatalf("enforce: %+v %v", d, err)
		}
		for name, c := range certificates {
			if got := resultFrom(t, d, state(t, c.certificate)); got != c.want {
				t.Errorf("enforce, %s: %q", name, got)
			}
		}
	}
	var f *Failure
	if d, err := decide(policy(STSModeEnforce, "x.test", "*.primary.test")); !errors.As(err, &f) || f.Result != ValidationFailure || f.Source != FromSTS || d.Config != nil {
		t.Errorf("enforce, host not named: %+v %v", d, err)
	}

	// Testing reports and never refuses.
	d, err := decide(policy(STSModeTesting, "primary.test"))
	if err != nil || d.Config != nil || d.Judge == nil || d.Trouble != nil || d.Source != FromSTS {
		t.Fatalf("testing: %+v %v", d, err)
	}
	for name, c := range certificates {
		got := d.Judge(state(t, c.certificate))
		if (got == nil) != (c.want == "") || got != nil && (got.Result != c.want || got.Source != FromSTS) {
			t.Errorf("testing, %s: %v", name, got)
		}
	}
	old := state(t, good)
	old.Version = tls.VersionTLS11
	if got := d.Judge(old); got == nil || got.Result != ValidationFailure {
		t.Errorf("testing, TLS 1.1: %v", got)
	}
	if d, err := decide(policy(STSModeTesting, "x.test")); err != nil || d.Config != nil || d.Judge == nil || d.Judge(state(t, good)).Result != ValidationFailure {
		t.Errorf("testing, host not named: %+v %v", d, err)
	}

	for name, s := range map[string]STS{"none": {Status: STSNone}, "mode none": policy(STSModeNone, "x.test")} {
		if d, err := decide(s); err != nil || d.Config != nil || d.Judge != nil || d.Trouble != nil || d.Source != FromNobody {
			t.Errorf("%s: %+v %v", name, d, err)
		}
	}

	// Not known: TLS, and nobody can say whose.
	for _, row := range []struct {
		s    STS
		want Result
	}{
		{STS{}, STSPolicyFetchError}, {STS{Result: STSWebPKIInvalid, Err: fmt.Errorf("expired")}, STSWebPKIInvalid}, {STS{Status: 9}, STSPolicyFetchError},
	} {
		d, err := decide(row.s)
		if err != nil || d.Config == nil || d.Config.VerifyConnection != nil || d.Trouble == nil || d.Trouble.Result != row.want || d.Trouble.Source != FromSTS {
			t.Errorf("%+v: %+v %v", row.s, d, err)
		}
	}
}
