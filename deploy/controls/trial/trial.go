// Package trial shows that a test would notice a broken rule: it plays the same
// script with a switch off and on.
package trial

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// A Control is a switch, and the script that must notice it.
type Control struct {
	Switch  controls.Switch
	Name    string
	Promise string // what is broken, by the list of docs/architecture.md
	Level   string // what the script runs on: the cheapest that can show it
	Package string // of the script
	Script  string // the test, and the seed where it has one
}

// All lists the controls, in the order in which they are shown.
var All = []Control{
	{controls.FsyncRemoved, "fsync removed", "1: a 250 is on stable storage", "crash exploration", "./cluster/spool", "TestControlFsyncRemoved, workloads 0 to 7"},
	{controls.EarlyReply, "250 before commit", "1: a 250 is at a majority", "simulation", "./deploy/sim", "TestControlEarlyReply, seed 40"},
	{controls.EarlyDelete, "body deleted before commit", "1: a 250 stays at a majority", "unit", "./cluster", "TestControlEarlyDelete"},
	{controls.RuleOff, "append rule off", "1: a 250 has its body at a majority", "consensus in a bubble", "./cluster/consensus", "TestControlRuleOff, seed 1"},
	{controls.HeartbeatFastPath, "heartbeat fast path on", "1: logs agree", "consensus in a bubble", "./cluster/consensus", "TestControlHeartbeatFastPath"},
	{controls.UnknownRefused, "451 on an unknown outcome", "4: what was refused is never delivered", "simulation", "./deploy/sim", "TestControlUnknownRefused, seed 41"},
	{controls.LeaseUnchecked, "lease check removed", "3: one holder at a time", "delivery in a bubble", "./delivery", "TestControlLeaseUnchecked"},
	{controls.ChecksumUnchecked, "checksum check removed", "6: the body is byte-identical", "unit", "./cluster/spool", "TestControlChecksumUnchecked"},
	{controls.StrayCRPassed, "stray CR passed", "6: stray CR is normalised", "unit", "./smtpd", "TestControlStrayCRPassed"},
	{controls.WallClockExpiry, "wall-clock expiry", "2: no clock expires mail", "unit", "./cluster/dispatch", "TestControlWallClockExpiry"},
	{controls.UnknownNameBounced, "bounce on NXDOMAIN", "2: DNS fails no mail", "delivery in a bubble", "./delivery", "TestControlUnknownNameBounced"},
}

// Of returns the control of a switch.
func Of(one controls.Switch) Control {
	for _, c := range All {
		if c.Switch == one {
			return c
		}
	}
	panic(fmt.Sprintf("no control has switch %d", one))
}

// Verdicts.
const (
	Caught     = "caught"
	NotCaught  = "NOT CAUGHT"
	FailsFirst = "FAILS WITH THE SWITCH OFF"
)

// linePrefix begins the line that Run prints.
const linePrefix = "control|"

// A Line is what Run prints: the verdict on one control.
type Line struct {
	Name, Verdict string
	Seconds       float64 // of the processor
	Noticed       string  // how the script noticed
}

// String is the form that Parse reads.
func (l Line) String() string {
	return fmt.Sprintf("%s%s|%s|%.1f|%s", linePrefix, l.Name, l.Verdict, l.Seconds, l.Noticed)
}

// Parse reads a line of output. False: it is another.
func Parse(text string) (l Line, ok bool) {
	_, rest, ok := strings.Cut(text, linePrefix)
	parts := strings.SplitN(rest, "|", 4)
	if !ok || len(parts) != 4 {
		return Line{}, false
	}
	_, err := fmt.Sscanf(parts[2], "%g", &l.Seconds)
	l.Name, l.Verdict, l.Noticed = parts[0], parts[1], parts[3]
	return l, err == nil
}

// A Script plays a story on what it builds with that Set, and returns the promise
// that it saw broken. What else goes wrong fails the test.
type Script func(t *testing.T, on controls.Set) error

// Run plays the script twice: with everything off it must return nil, with the
// switch on an error. In a build without switches it is played once. A script that is
// skipped, be it once, has no verdict.
func Run(t *testing.T, one controls.Switch, script Script) {
	t.Helper()
	began := processorSeconds(t)
	line := Line{Name: Of(one).Name, Verdict: Caught}
	skipped := false
	if !t.Run("off", func(t *testing.T) {
		defer func() { skipped = t.Skipped() }()
		if err := script(t, controls.Set{}); err != nil {
			t.Error(err)
		}
	}) {
		line.Verdict = FailsFirst
	} else if !t.Run("on", func(t *testing.T) {
		defer func() { skipped = skipped || t.Skipped() }()
		err := script(t, On(t, one))
		if err == nil {
			t.Fatal("the rule is broken on purpose, and nobody noticed")
		}
		line.Noticed, _, _ = strings.Cut(err.Error(), "\n")
	}) {
		line.Verdict = NotCaught
	}
	line.Seconds = processorSeconds(t) - began
	if !skipped {
		fmt.Println(line)
	}
}

// processorSeconds is how long this process has had a processor: how long a script takes
// by the clock is a matter of what else the host does.
func processorSeconds(t *testing.T) float64 {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}
