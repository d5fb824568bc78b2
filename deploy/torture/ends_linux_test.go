package main

import (
	"errors"
	"fmt"
	"testing"

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

// What ended, and when, is told by the faults of the round.
func TestRoundNamesItsFaults(t *testing.T) {
	r := round{{fault: schedule.Fault{Kind: schedule.Kill, Victim: 1}}, {fault: schedule.Fault{Kind: schedule.PrimaryDown, Victim: 0}}}
	if got := r.String(); got != `"kill (node-2)" and "primary down (node-1)"` {
		t.Error(got)
	}
}
