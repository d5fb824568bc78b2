package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// The timeline shows what happened.
func TestTimeline(t *testing.T) {
	d := newDiary(io.Discard, time.Now())
	d.fault("power loss")()
	d.acked(3)
	d.arrived()
	d.leader("node-2")
	got := (&run{diary: d}).timeline()
	for _, want := range []string{"<svg", "power loss", "node-2", "polyline", "(3 at most)"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}
