package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// A node may end by itself because its own disk was broken, in the way in which it was,
// and in no other way.
func TestEnds(t *testing.T) {
	refuses, lacks, fell := fmt.Errorf("exit 74: %w", errRefuses), fmt.Errorf("exit 70: %w", errLacks), fmt.Errorf("exit 1: %w", errFell)
	for _, c := range []struct {
		name   string
		act    act
		excuse []error
	}{
		{"a node that was killed", act{unhealthy: []int{1}}, nil},
		{"a disk that fails", act{unhealthy: []int{1}, ends: true}, []error{refuses}},
		{"a disk that lost what it had", act{unhealthy: []int{1}, refuses: true}, []error{refuses, lacks}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnds()
			e.expect(c.act)
			for _, end := range []error{nil, refuses, lacks, fell} {
				want := false
				for _, excused := range c.excuse {
					want = want || errors.Is(end, excused)
				}
				if got := e.expected(1, end); got != want {
					t.Errorf("%v: expected %v, want %v", end, got, want)
				}
				if e.expected(0, end) {
					t.Errorf("%v: expected of a node whose disk is whole", end)
				}
			}
		})
	}
}

// An end that is noticed late is that of when it was.
func TestEndsByTheirTime(t *testing.T) {
	e := newEnds()
	e.expect(act{unhealthy: []int{1}, ends: true})
	end := func(late time.Duration) error {
		return fmt.Errorf("%w: %w", errRefuses, &fleet.Fall{At: time.Now().Add(late)})
	}
	if !e.expected(1, end(endsWithin/2)) || e.expected(1, end(endsWithin+time.Second)) {
		t.Error("the time of an end is not what counts")
	}
	e.refuse[1] = ledger.Span{From: time.Now().Add(-3 * time.Minute), To: time.Now().Add(-time.Minute)}
	if !e.expected(1, end(-2*time.Minute)) || e.expected(1, end(0)) {
		t.Error("the time of an end that is noticed late is not what counts")
	}
	if e.expected(1, end(-4*time.Minute)) {
		t.Error("an end is of a disk that was broken behind it")
	}
}

// What ended, and when, is told by the faults of the round.
func TestRoundNamesItsFaults(t *testing.T) {
	r := round{{fault: schedule.Fault{Kind: schedule.Kill, Victim: 1}}, {fault: schedule.Fault{Kind: schedule.PrimaryDown, Victim: 0}}}
	if got := r.String(); got != `"kill (node-2)" and "primary down (node-1)"` {
		t.Error(got)
	}
}
