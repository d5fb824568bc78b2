package fsm_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
)

// TestMailThatIsCalledFor: a domain on demand has no next hop, and nothing that a node
// reports of one that it had takes effect.
func TestMailThatIsCalledFor(t *testing.T) {
	s := fsm.New()
	callers := fsm.Callers{User: "mail.a.test", Secret: "$2a$04$salt-and-hash", Pins: [][32]byte{{1}}}
	targets := []fsm.Target{{Host: "192.0.2.1", Port: 25}}
	for _, d := range []fsm.Domain{
		{OnDemand: true, MX: true}, {OnDemand: true, Targets: targets}, {},
		{OnDemand: true, Callers: fsm.Callers{User: "name alone"}}, {OnDemand: true, Callers: fsm.Callers{Secret: "password alone"}},
		{OnDemand: true, Callers: fsm.Callers{User: "a\x00b", Secret: "x"}}, {OnDemand: true, Callers: fsm.Callers{User: strings.Repeat("a", 256), Secret: "x"}},
		{OnDemand: true, Callers: fsm.Callers{User: "a", Secret: fsm.PasswordHash(strings.Repeat("a", 256))}},
		{OnDemand: true, Callers: fsm.Callers{Pins: make([][32]byte, 17)}},
	} {
		d.Name = "a.test"
		if r := apply(s, fsm.PutDomain{Domain: d}); r.Verdict != fsm.Invalid {
			t.Errorf("%+v: %+v", d, r)
		}
	}
	if r := apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", Targets: targets}}); r.Verdict != fsm.Done {
		t.Fatal(r)
	}
	for _, n := range []fsm.NodeName{"n1", "n2"} {
		apply(s, fsm.ReportNextHop{Node: n, Domain: "a.test"})
	}
	if s.CommandVersion() >= 6 || s.CallersHaveKeys() {
		t.Errorf("version %d without callers", s.CommandVersion())
	}
	if r := apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", OnDemand: true, Callers: callers}}); r.Verdict != fsm.Done {
		t.Fatal(r)
	}
	for _, up := range []bool{false, true} {
		for _, n := range []fsm.NodeName{"n1", "n2"} {
			if r := apply(s, fsm.ReportNextHop{Node: n, Domain: "a.test", Up: up}); r.Verdict != fsm.Refused {
				t.Errorf("up %v: %+v", up, r)
			}
		}
	}
	if h := s.NextHop("a.test"); h.State != fsm.NextHopUp || len(h.Failed) > 0 {
		t.Errorf("%+v", h)
	}
	d, _ := s.Domain("a.test")
	if !d.OnDemand || d.Callers.Secret != callers.Secret || s.CommandVersion() < 6 || !s.CallersHaveKeys() {
		t.Errorf("%+v, version %d", d, s.CommandVersion())
	}
	for _, verb := range []string{"%v", "%+v", "%s"} {
		if text := fmt.Sprintf(verb, d); strings.Contains(text, "salt") {
			t.Errorf("%s shows a password: %s", verb, text)
		}
	}
	d.Callers.Pins[0] = [32]byte{9}
	if again, _ := s.Domain("a.test"); again.Callers.Pins[0] != (callers.Pins[0]) {
		t.Error("who asks for a domain can change it")
	}
}
