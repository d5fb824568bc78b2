package node

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestTLSPolicies: a policy of each mode comes through the log as it was given, under
// the same name; what makes no sense is refused with a reason.
func TestTLSPolicies(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	for mode := fsm.TLSOpportunistic; mode <= fsm.TLSMTASTS; mode++ {
		var pins, names []string
		if mode == fsm.TLSVerify {
			pins = []string{pin}
		}
		got, err := adminCluster{}.TLSPolicy(mode.String(), pins, "", names)
		if err != nil || got.Mode != mode || len(got.Pins) != len(pins) {
			t.Errorf("%s: %+v, %v", mode, got, err)
			continue
		}
		if p := policyOf(got); p.Mode.String() != mode.String() || len(p.Pins) != len(pins) || len(pins) > 0 && p.Pins[0].String() != pin {
			t.Errorf("%s becomes %+v", mode, p)
		}
	}
	for what, ask := range map[string]struct {
		mode      string
		pins      []string
		cas, name string
	}{
		"no mode":           {mode: "always"},
		"pins without need": {mode: "require", pins: []string{pin}},
		"no pin":            {mode: "verify", pins: []string{"abc"}},
		"no certificate":    {mode: "verify", cas: "-----BEGIN CERTIFICATE-----"},
		"no name":           {mode: "verify", name: "not a name"},
	} {
		var names []string
		if ask.name != "" {
			names = []string{ask.name}
		}
		if got, err := (adminCluster{}).TLSPolicy(ask.mode, ask.pins, ask.cas, names); err == nil {
			t.Errorf("%s: read as %+v", what, got)
		}
	}
}

// TestTLSAlarms: one stands from the first failure to the first success, or until the
// domain has no policy any more; only the first of each is news.
func TestTLSAlarms(t *testing.T) {
	var all tlsAlarms
	now := time.Now()
	always := func(mail.Domain) *tlspolicy.Policy { return &tlspolicy.Policy{Mode: tlspolicy.Require} }
	f := &tlspolicy.Failure{}
	for i, step := range []struct {
		f    *tlspolicy.Failure
		news bool
		have int
	}{{nil, false, 0}, {f, true, 1}, {f, false, 1}, {nil, true, 0}, {nil, false, 0}, {f, true, 1}} {
		if news := all.note("example.test", step.f, now.Add(time.Duration(i)*time.Minute)); news != step.news {
			t.Errorf("%d: news %v", i, news)
		}
		got := all.alarms(always)
		if len(got) != step.have || step.have > 0 && got[0].Scope != "domain example.test" {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if since := all.alarms(always)[0].Since; !since.Equal(now.Add(5 * time.Minute)) {
		t.Errorf("since %v", since)
	}
	if got := all.alarms(func(mail.Domain) *tlspolicy.Policy { return nil }); len(got) != 0 {
		t.Errorf("without a policy: %+v", got)
	}
}
