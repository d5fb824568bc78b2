package delivery

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// tlsStart is when a bubble's time begins.
var tlsStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// namedRouter leads to the primary by a name.
type namedRouter struct{}

func (namedRouter) Route(context.Context, fsm.Domain) ([]route.Hop, error) {
	return []route.Hop{{Host: "primary.test", Address: netip.MustParseAddrPort(primaryAt)}}, nil
}

// A tlsPrimary is a primary whose TLS can be broken and cured.
type tlsPrimary struct {
	*deliverytest.Primary
	mu      sync.Mutex
	current *tls.Config
}

func newTLSPrimary(good tls.Certificate) *tlsPrimary {
	p := &tlsPrimary{current: &tls.Config{Certificates: []tls.Certificate{good}}}
	p.Primary = &deliverytest.Primary{Extensions: extensions, TLS: &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.current, nil
		},
	}}
	return p
}

func (p *tlsPrimary) set(c *tls.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = c
}

// alarms keeps what TLSAlarm was told.
type alarms struct {
	mu   sync.Mutex
	told []*tlspolicy.Failure
}

func (a *alarms) tell(_ mail.Domain, f *tlspolicy.Failure) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, f)
}

// last returns the result told last: "quiet" where nobody was told anything,
// "" where nothing is wrong.
func (a *alarms) last() tlspolicy.Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case len(a.told) == 0:
		return "quiet"
	case a.told[len(a.told)-1] == nil:
		return ""
	}
	return a.told[len(a.told)-1].Result
}

// What becomes of a message.
const (
	overTLS    = "over TLS"
	inTheClear = "in the clear"
)

// TestFault47 breaks the primary's TLS in every way, under every policy: the
// mail goes, over TLS or in the clear, or it waits, with the reason named here,
// and goes when the primary is cured. Fault 46, forged DNS, is the same thing:
// the certificate is another's.
func TestFault47(t *testing.T) {
	public := deliverytest.NewAuthority(t, "public", tlsStart)
	names := []string{"primary.test"}
	good := public.Issue(t, deliverytest.Certificate{Names: names})
	expired := public.Issue(t, deliverytest.Certificate{Names: names, From: tlsStart.AddDate(-2, 0, 0), To: tlsStart.AddDate(-1, 0, 0)})
	stranger := public.Issue(t, deliverytest.Certificate{Names: []string{"attacker.test"}})
	selfMade := public.Issue(t, deliverytest.Certificate{Names: names, SelfMade: true})
	one := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	old := one(good)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS10

	faults := []struct {
		name   string
		server *tls.Config // nil for a good one
		answer func(stage, line string) string
	}{
		{name: "none"},
		{name: "expired", server: one(expired)},
		{name: "wrong name", server: one(stranger)},
		{name: "self-signed", server: one(selfMade)},
		{name: "STARTTLS stripped", answer: at(deliverytest.Hello, "250-primary.test\r\n250 PIPELINING")},
		{name: "STARTTLS refused", answer: at(deliverytest.StartTLS, "454 4.7.0 not now")},
		{name: "TLS 1.0 only", server: old},
		{name: "closed in the handshake", answer: at(deliverytest.Handshake, deliverytest.Drop)},
	}
	key := sha256.Sum256(good.Leaf.RawSubjectPublicKeyInfo)
	ca := sha256.Sum256(public.Cert.Raw)
	tlsa := func(records ...tlspolicy.TLSARecord) tlspolicy.TLSA {
		return tlspolicy.TLSA{Status: tlspolicy.TLSAFound, Base: "primary.test", Names: names, Records: records}
	}
	sts := func(mode tlspolicy.STSMode) tlspolicy.STS {
		return tlspolicy.STS{Status: tlspolicy.STSFound, Policy: tlspolicy.STSPolicy{Mode: mode, MX: names, MaxAge: time.Hour}}
	}
	const (
		noTLS   = string(tlspolicy.StartTLSNotSupported)
		failed  = string(tlspolicy.ValidationFailure)
		late    = string(tlspolicy.CertificateExpired)
		other   = string(tlspolicy.CertificateHostMismatch)
		unknown = string(tlspolicy.CertificateNotTrusted)
	)
	opportunistic := []string{overTLS, overTLS, overTLS, overTLS, inTheClear, inTheClear, overTLS, inTheClear}
	anyTLS := []string{overTLS, overTLS, overTLS, overTLS, noTLS, noTLS, failed, failed}
	byAuthority := []string{overTLS, late, other, unknown, noTLS, noTLS, failed, failed}
	byKey := []string{overTLS, unknown, unknown, unknown, noTLS, noTLS, failed, failed}
	for _, policy := range []struct {
		name string
		p    *tlspolicy.Policy
		tlsa tlspolicy.TLSA
		sts  tlspolicy.STS
		want []string         // parallel to faults
		odd  tlspolicy.Result // what the alarm says while mail goes
	}{
		{name: "none", want: opportunistic},
		{name: "opportunistic", p: &tlspolicy.Policy{}, want: opportunistic},
		{name: "require", p: &tlspolicy.Policy{Mode: tlspolicy.Require}, want: anyTLS},
		{name: "verify by authority", p: &tlspolicy.Policy{Mode: tlspolicy.Verify, CAs: public.PEM()}, want: byAuthority},
		{name: "verify by public authority", p: &tlspolicy.Policy{Mode: tlspolicy.Verify}, want: byAuthority},
		{name: "verify by pin", p: &tlspolicy.Policy{Mode: tlspolicy.Verify, Pins: []tlspolicy.Pin{key}}, want: byKey},
		{name: "DANE-EE", p: &tlspolicy.Policy{Mode: tlspolicy.DANE}, tlsa: tlsa(tlspolicy.TLSARecord{Usage: 3, Selector: 1, Matching: 1, Data: key[:]}), want: byKey},
		{name: "DANE-TA", p: &tlspolicy.Policy{Mode: tlspolicy.DANE}, tlsa: tlsa(tlspolicy.TLSARecord{Usage: 2, Selector: 0, Matching: 1, Data: ca[:]}), want: byAuthority},
		{name: "DANE, none usable", p: &tlspolicy.Policy{Mode: tlspolicy.DANE}, tlsa: tlsa(tlspolicy.TLSARecord{Usage: 1, Selector: 1, Matching: 1, Data: key[:]}), want: anyTLS, odd: tlspolicy.TLSAInvalid},
		{name: "DANE, no records", p: &tlspolicy.Policy{Mode: tlspolicy.DANE}, tlsa: tlspolicy.TLSA{Status: tlspolicy.TLSANone}, want: opportunistic},
		{name: "MTA-STS enforced", p: &tlspolicy.Policy{Mode: tlspolicy.MTASTS}, sts: sts(tlspolicy.STSModeEnforce), want: byAuthority},
		{name: "MTA-STS tested", p: &tlspolicy.Policy{Mode: tlspolicy.MTASTS}, sts: sts(tlspolicy.STSModeTesting), want: opportunistic},
		{name: "MTA-STS none", p: &tlspolicy.Policy{Mode: tlspolicy.MTASTS}, sts: tlspolicy.STS{Status: tlspolicy.STSNone}, want: opportunistic},
		{name: "MTA-STS unknown", p: &tlspolicy.Policy{Mode: tlspolicy.MTASTS}, want: anyTLS, odd: tlspolicy.STSPolicyFetchError},
	} {
		for i, fault := range faults {
			t.Run(policy.name+", "+fault.name, func(t *testing.T) {
				p := newTLSPrimary(good)
				p.SetAnswer(fault.answer)
				if fault.server != nil {
					p.set(fault.server)
				}
				var told alarms
				counts := new(tlspolicy.Counts)
				change := func(c *Config) {
					c.Router, c.TLS, c.PublicRoots = namedRouter{}, nil, public.Pool()
					c.TLSPolicy = func(mail.Domain) *tlspolicy.Policy { return policy.p }
					c.TLSA = func(context.Context, fsm.Domain, route.Hop) tlspolicy.TLSA { return policy.tlsa }
					c.STS = func(context.Context, mail.Domain) tlspolicy.STS { return policy.sts }
					c.TLSAlarm, c.TLSCounts = told.tell, counts
				}
				bubbleWith(t, p.Primary, nil, change, func(c *cluster, a *Agent) {
					ids := c.acceptN(1)
					switch want := policy.want[i]; want {
					case overTLS, inTheClear:
						c.done(ids, time.Minute)
						if got := p.Received(); len(got) != 1 || got[0].TLS != (want == overTLS) {
							t.Errorf("delivered %d, TLS %v", len(got), len(got) > 0 && got[0].TLS)
						}
						if told.last() != policy.odd {
							t.Errorf("alarm says %q", told.last())
						}
					default:
						time.Sleep(3 * time.Minute)
						m := c.message(ids[0])
						if m.Recipients[0].State != fsm.RecipientQueued || m.Parts[0].Attempts != 0 || m.PossibleDuplicate {
							t.Errorf("%v after %d attempts", m.Recipients[0].State, m.Parts[0].Attempts)
						}
						for _, line := range p.Lines() {
							if verb, _, _ := strings.Cut(line, " "); verb != "EHLO" && verb != "STARTTLS" && verb != "QUIT" {
								t.Errorf("said %q", line)
							}
						}
						if string(told.last()) != want || a.Stats().TLSRefused.Load() == 0 {
							t.Errorf("alarm says %q, %d refused", told.last(), a.Stats().TLSRefused.Load())
						}
						if n := failures(counts, tlspolicy.Result(want)); n != a.Stats().TLSRefused.Load() {
							t.Errorf("%d counted, %d refused", n, a.Stats().TLSRefused.Load())
						}
						if detail := c.hop().Detail; !strings.Contains(detail, want) {
							t.Errorf("next hop: %q", detail)
						}
					}
					p.SetAnswer(nil)
					p.set(one(good))
					ids = append(ids, c.acceptN(1)...)
					c.done(ids, 2*time.Minute)
					c.exactlyOnce(ids)
					if got := p.Received(); !got[len(got)-1].TLS || told.last() != policy.odd {
						t.Errorf("cured: TLS %v, alarm says %q", got[len(got)-1].TLS, told.last())
					}
				})
			})
		}
	}
}

// failures returns how often a result was counted.
func failures(c *tlspolicy.Counts, r tlspolicy.Result) int64 {
	n := int64(0)
	for _, day := range c.Days() {
		for _, d := range c.Read(day) {
			for _, f := range d.Failures {
				if f.Result == r {
					n += int64(f.Sessions)
				}
			}
		}
	}
	return n
}

// Where it cannot be learnt what DANE says, nobody is even connected to; when
// it can, the mail goes.
func TestDANEWaitsForDNS(t *testing.T) {
	public := deliverytest.NewAuthority(t, "public", tlsStart)
	good := public.Issue(t, deliverytest.Certificate{Names: []string{"primary.test"}})
	for name, lookup := range map[string]func(context.Context, fsm.Domain, route.Hop) tlspolicy.TLSA{
		"no lookup": nil,
		"SERVFAIL": func(context.Context, fsm.Domain, route.Hop) tlspolicy.TLSA {
			return tlspolicy.TLSA{Err: route.ErrNotFound}
		},
		"hangs": func(ctx context.Context, _ fsm.Domain, _ route.Hop) tlspolicy.TLSA {
			<-ctx.Done()
			return tlspolicy.TLSA{Err: ctx.Err()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTLSPrimary(good)
			var told alarms
			var mu sync.Mutex
			mode := tlspolicy.DANE
			change := func(c *Config) {
				c.Router, c.TLSA, c.TLSAlarm = namedRouter{}, lookup, told.tell
				c.TLSPolicy = func(mail.Domain) *tlspolicy.Policy {
					mu.Lock()
					defer mu.Unlock()
					return &tlspolicy.Policy{Mode: mode}
				}
			}
			bubbleWith(t, p.Primary, nil, change, func(c *cluster, a *Agent) {
				ids := c.acceptN(1)
				time.Sleep(3 * time.Minute)
				if p.Sessions() != 0 || told.last() != tlspolicy.DNSSECInvalid || c.message(ids[0]).Recipients[0].State != fsm.RecipientQueued {
					t.Errorf("%d sessions, alarm says %q", p.Sessions(), told.last())
				}
				mu.Lock()
				mode = tlspolicy.Opportunistic
				mu.Unlock()
				c.done(ids, time.Minute)
				if told.last() != "" {
					t.Errorf("alarm says %q", told.last())
				}
			})
		})
	}
}

// A policy's host that hangs holds the mail up for as long as policyTimeout, at
// each attempt and each probe, and no longer.
func TestSTSThatHangs(t *testing.T) {
	good := deliverytest.NewAuthority(t, "public", tlsStart).Issue(t, deliverytest.Certificate{Names: []string{"primary.test"}})
	p := newTLSPrimary(good)
	var told alarms
	change := func(c *Config) {
		c.Router, c.TLSAlarm = namedRouter{}, told.tell
		c.TLSPolicy = func(mail.Domain) *tlspolicy.Policy { return &tlspolicy.Policy{Mode: tlspolicy.MTASTS} }
		c.STS = func(ctx context.Context, _ mail.Domain) tlspolicy.STS {
			<-ctx.Done()
			return tlspolicy.STS{Err: ctx.Err()}
		}
	}
	bubbleWith(t, p.Primary, nil, change, func(c *cluster, a *Agent) {
		for _, node := range []fsm.NodeName{"b", "c"} { // It is down for the cluster: only a probe finds it up.
			c.apply(node, fsm.ReportNextHop{Node: node, Domain: testDomain})
		}
		ids := c.acceptN(1)
		c.done(ids, 2*time.Minute)
		if got := p.Received(); !got[0].TLS || told.last() != tlspolicy.STSPolicyFetchError || a.Stats().ProbesUp.Load() == 0 {
			t.Errorf("TLS %v, alarm says %q, %d probes", got[0].TLS, told.last(), a.Stats().ProbesUp.Load())
		}
	})
}

// twoHops are the primary under two names.
type twoHops struct{}

func (twoHops) Route(context.Context, fsm.Domain) ([]route.Hop, error) {
	at := netip.MustParseAddrPort(primaryAt)
	return []route.Hop{{Host: "attacker.test", Address: at}, {Host: "primary.test", Address: at}}, nil
}

// RFC 8461 section 5.1: a hop that the policy does not name is passed over, and
// the mail goes by the next.
func TestNextHopAfterOneThatIsForbidden(t *testing.T) {
	public := deliverytest.NewAuthority(t, "public", tlsStart)
	p := newTLSPrimary(public.Issue(t, deliverytest.Certificate{Names: []string{"primary.test", "attacker.test"}}))
	var told alarms
	counts := new(tlspolicy.Counts)
	change := func(c *Config) {
		c.Router, c.TLSAlarm, c.TLSCounts, c.PublicRoots = twoHops{}, told.tell, counts, public.Pool()
		c.TLSPolicy = func(mail.Domain) *tlspolicy.Policy { return &tlspolicy.Policy{Mode: tlspolicy.MTASTS} }
		c.STS = func(context.Context, mail.Domain) tlspolicy.STS {
			return tlspolicy.STS{Status: tlspolicy.STSFound, Policy: tlspolicy.STSPolicy{Mode: tlspolicy.STSModeEnforce, MX: []string{"primary.test"}, MaxAge: time.Hour}}
		}
	}
	bubbleWith(t, p.Primary, nil, change, func(c *cluster, a *Agent) {
		c.done(c.acceptN(1), time.Minute)
		if p.Sessions() != 1 || told.last() != "" || failures(counts, tlspolicy.ValidationFailure) != 1 || a.Stats().TLSRefused.Load() != 1 {
			t.Errorf("%d sessions, alarm says %q, %+v", p.Sessions(), told.last(), counts.Read(tlspolicy.DayOf(tlsStart)))
		}
	})
}

// A session that is used although the policy found it wanting is counted as a
// failure, and one that is in order as a success.
func TestTLSCounts(t *testing.T) {
	public := deliverytest.NewAuthority(t, "public", tlsStart)
	stranger := public.Issue(t, deliverytest.Certificate{Names: []string{"attacker.test"}})
	p := newTLSPrimary(stranger)
	counts := new(tlspolicy.Counts)
	change := func(c *Config) {
		c.Router, c.PublicRoots, c.TLSCounts = namedRouter{}, public.Pool(), counts
		c.TLSPolicy = func(mail.Domain) *tlspolicy.Policy { return &tlspolicy.Policy{Mode: tlspolicy.MTASTS} }
		c.STS = func(context.Context, mail.Domain) tlspolicy.STS {
			return tlspolicy.STS{Status: tlspolicy.STSFound, Policy: tlspolicy.STSPolicy{Mode: tlspolicy.STSModeTesting, MX: []string{"*.test"}, MaxAge: time.Hour}}
		}
	}
	bubbleWith(t, p.Primary, nil, change, func(c *cluster, a *Agent) {
		c.done(c.acceptN(1), time.Minute)
		got := counts.Read(tlspolicy.DayOf(tlsStart))
		if len(got) != 1 || got[0].Domain != testDomain || got[0].Source != tlspolicy.FromSTS || got[0].Succeeded != 0 || got[0].Failed != 1 ||
			got[0].Failures[0].FailureKey != (tlspolicy.FailureKey{Result: tlspolicy.CertificateHostMismatch, Host: "primary.test"}) {
			t.Errorf("%+v", got)
		}
		time.Sleep(25 * time.Hour) // The next day.
		p.set(&tls.Config{Certificates: []tls.Certificate{public.Issue(t, deliverytest.Certificate{Names: []string{"primary.test"}})}})
		c.done(c.acceptN(1), time.Minute)
		got = counts.Read(tlspolicy.DayOf(tlsStart) + 1)
		if len(got) != 1 || got[0].Succeeded != 1 || got[0].Failed != 0 {
			t.Errorf("the next day: %+v", got)
		}
	})
}
