package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(c.values)
		if got := median(c.values); got != c.want {
			t.Errorf("%v: %v", c.values, got)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("%v was sorted in place", before)
		}
	}
}

func TestParseCells(t *testing.T) {
	got, err := parseCells([]string{"4k:100", "mix:20", "1m:1"})
	if want := []cell{{load.Size4K, 100}, {load.Mix, 20}, {load.Size1M, 1}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "4k", "4k:", "4k:0", "4k:-1", "5k:1", ":1", "4k:1:1"} {
		if _, err := parseCells([]string{bad}); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// A ratio is taken per round, and the median of those is printed: not the ratio
// of the medians. Failed messages are in none of it.
func TestPrintMatches(t *testing.T) {
	result := func(accepted int, p99 time.Duration) load.Result {
		return load.Result{
			Accepted: accepted, Elapsed: 10 * time.Second, Failed: map[int]int{451: 100_000},
			Dot: load.Quantiles{P99: p99},
		}
	}
	c := cell{load.Size4K, 100}
	var matches []match
	for i, v := range [][2]int{{1000, 6000}, {4000, 8000}, {2000, 10_000}} {
		matches = append(matches, match{
			Round: i + 1, Cell: c,
			Postfix: result(v[0], 400*time.Millisecond), Holdfast: result(v[1], 50*time.Millisecond),
		})
	}
	var out bytes.Buffer
	(&app{out: &out}).printMatches([]cell{c}, matches)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if got := lines[len(lines)-1]; got != "headline mix_100=0.00 mix_20=0.00 kb4_100=5.00" {
		t.Errorf("last line %q", got)
	}
	for _, want := range []string{"4k:100", "200.0", "800.0", "5.00 (2.00-6.00)", "8.00 (8.00-8.00)"} {
		if !strings.Contains(lines[1], want) {
			t.Errorf("%q has no %q", lines[1], want)
		}
	}
	if got := fmt.Sprint(c); got != "4k:100" {
		t.Error(got)
	}
}
