package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

// at returns the control of a switch with its script in testdata.
func at(one controls.Switch, dir string) trial.Control {
	c := trial.Of(one)
	c.Package = "./testdata/" + dir
	return c
}

// TestPlay: whatever else than a control that is caught comes to pass, the run fails
// and says which control it was.
func TestPlay(t *testing.T) {
	caught := at(controls.FsyncRemoved, "caught")
	for _, c := range []struct {
		control trial.Control
		verdict string
	}{
		{at(controls.EarlyReply, "idle"), trial.NotCaught},
		{at(controls.EarlyDelete, "skipped"), "DID NOT RUN"},
		{at(controls.RuleOff, "skippedoff"), "DID NOT RUN"},
		{at(controls.HeartbeatFastPath, "fails"), trial.FailsFirst},
		{at(controls.UnknownRefused, "nobuild"), "DID NOT RUN"},
		{at(controls.LeaseUnchecked, "absent"), "DID NOT RUN"},
		{at(controls.ChecksumUnchecked, "slow"), "CAUGHT AFTER MORE THAN 0.4 s"},
		{at(controls.StrayCRPassed, "dies"), "DID NOT RUN"},
		{at(controls.WallClockExpiry, "nowhere"), "DID NOT RUN"},
	} {
		var out bytes.Buffer
		if play(&out, []trial.Control{caught, c.control}, 0.4) {
			t.Errorf("%s: the run passes", c.control.Package)
		}
		if got := verdict(out.String(), c.control); got != c.verdict {
			t.Errorf("%s: the verdict is %q, want %q; all of it:\n%s", c.control.Package, got, c.verdict, &out)
		}
		if !strings.HasSuffix(out.String(), "\ncontrols=2 caught=1\n") && !strings.HasSuffix(out.String(), "\ncontrols=2 caught=0\n") {
			t.Errorf("%s: the last line is not right:\n%s", c.control.Package, &out)
		}
	}
	var out bytes.Buffer
	if !play(&out, []trial.Control{caught}, secondsMax) || verdict(out.String(), caught) != trial.Caught || !strings.HasSuffix(out.String(), "\ncontrols=1 caught=1\n") {
		t.Errorf("one that is caught:\n%s", &out)
	}
}

// verdict finds what is said of a control.
func verdict(out string, c trial.Control) string {
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, c.Name+" "); ok {
			_, said, _ := strings.Cut(strings.TrimSpace(rest), c.Level)
			_, said, _ = strings.Cut(strings.TrimSpace(said), "s  ")
			return strings.TrimSpace(said)
		}
	}
	return ""
}

// TestEverySwitchHasAControl: each of the first eleven switches, and once.
func TestEverySwitchHasAControl(t *testing.T) {
	if len(trial.All) != 11 {
		t.Errorf("%d controls", len(trial.All))
	}
	seen := map[controls.Switch]bool{}
	for _, c := range trial.All {
		if seen[c.Switch] || c.Script == "" || c.Package == "" {
			t.Errorf("%+v", c)
		}
		seen[c.Switch] = true
	}
	for one := controls.FsyncRemoved; one <= controls.UnknownNameBounced; one <<= 1 {
		if !seen[one] {
			t.Errorf("switch %b has no control", one)
		}
	}
}
