package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// slow is a result with those medians, in milliseconds.
func slow(dot, whole time.Duration) load.Result {
	const ms = time.Millisecond
	return load.Result{Accepted: 100, Elapsed: time.Second, Dot: load.Quantiles{P50: dot * ms}, Session: load.Quantiles{P50: whole * ms}}
}

// slowComparison runs compareSlow with results in place of servers.
func slowComparison(t *testing.T, postfix, holdfast []load.Result) (out string, err error) {
	t.Helper()
	var printed bytes.Buffer
	a := &app{out: &printed, quiet: true}
	play := func(results []load.Result) side {
		return func(_ context.Context, o load.Options) (r load.Result, err error) {
			if o.Sessions != 1 || o.Sizes != load.Size4K || !o.Rotate || o.PerConnection > 1 {
				t.Errorf("the load %+v", o)
			}
			if len(results) == 0 {
				return r, errors.New("no more results")
			}
			r, results = results[0], results[1:]
			return r, nil
		}
	}
	err = a.compareSlow(t.Context(), slowDiskFlags{rounds: len(postfix), duration: time.Second, delay: 5 * time.Millisecond}, play(postfix), play(holdfast))
	return printed.String(), err
}

// TestCompareSlow: the last line is the median of the rounds' ratios of the reply
// to the final dot, Postfix's time above the nodes'.
func TestCompareSlow(t *testing.T) {
	out, err := slowComparison(t,
		[]load.Result{slow(6, 9), slow(8, 9), slow(9, 12)},
		[]load.Result{slow(12, 18), slow(10, 12), slow(45, 48)})
	if err != nil {
		t.Fatal(err)
	}
	want := `one session, 4 KiB, 5ms more for each sync, 3 rounds
reply to the final dot, p50: Postfix 8.00 ms, Holdfast 12.00 ms; ratio 0.50 (0.20-0.80)
whole message, p50: Postfix 9.00 ms, Holdfast 18.00 ms; ratio 0.50 (0.25-0.75)
slow_disk_p50=0.50
`
	if out != want {
		t.Errorf("printed %s", out)
	}
}

// TestCompareSlowErrors: a side that the delay did not reach, and messages that
// failed.
func TestCompareSlowErrors(t *testing.T) {
	good := slow(12, 14)
	for name, side := range map[string][2]load.Result{"Postfix": {slow(4, 9), good}, "Holdfast": {good, slow(4, 9)}} {
		_, err := slowComparison(t, []load.Result{side[0]}, []load.Result{side[1]})
		if err == nil || !strings.Contains(err.Error(), "round 1, "+name+": half of the replies to final dots came within 4ms: syncs were not delayed") {
			t.Errorf("a fast %s: %v", name, err)
		}
	}
	failed := good
	failed.Failed, failed.FirstFailure = map[int]int{451: 1}, "451 later"
	out, err := slowComparison(t, []load.Result{good}, []load.Result{failed})
	if err == nil || !strings.Contains(err.Error(), "1 at Holdfast (451 later)") || lastLine(out) != "slow_disk_p50=1.00" {
		t.Errorf("%v, %s", err, out)
	}
}
