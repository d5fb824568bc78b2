package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 2}, 2}, {[]float64{5, 1, 2, 4}, 3}, {[]float64{2, 2, 9, 1, 0}, 2}} {
		given := append([]float64(nil), c.values...)
		if got := median(given); got != c.want {
			t.Errorf("the median of %v is %v, want %v", c.values, got, c.want)
		}
		for i := range given {
			if given[i] != c.values[i] {
				t.Errorf("%v was sorted in place", c.values)
			}
		}
	}
}

func TestParseCells(t *testing.T) {
	got, err := parseCells([]string{"4k:100", "mix:1", "25m:7"})
	want := []cell{{load.Size4K, 100}, {load.Mix, 1}, {load.Size25M, 7}}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("cell %d is %v, want %v", i, got[i], want[i])
		}
	}
	for _, text := range []string{"", "4k", "4k:", ":4", "5k:10", "4k:0", "4k:-1", "4k:x", "4k:1:2"} {
		if cells, err := parseCells([]string{text}); err == nil {
			t.Errorf("%q gives %v", text, cells)
		}
	}
	if cells, err := parseCells([]string{"4k:1", "mix:1", "4k:1"}); err == nil {
		t.Errorf("the same cell twice gives %v", cells)
	}
}

// perSecond is a result of that many messages in a second.
func perSecond(n int, p99 time.Duration) load.Result {
	return load.Result{Accepted: n, Octets: int64(n), Elapsed: time.Second, Dot: load.Quantiles{P50: p99 / 2, P99: p99, Max: p99}}
}

// comparison runs compare with results in place of servers: those of each side,
// in the order in which they are asked for.
func comparison(t *testing.T, cells []cell, rounds int, json string, postfix, holdfast []load.Result) (out string, asked []load.Options, err error) {
	t.Helper()
	var printed bytes.Buffer
	a := &app{out: &printed, quiet: true}
	play := func(results []load.Result) side {
		return func(_ context.Context, o load.Options) (r load.Result, err error) {
			asked = append(asked, o)
			if len(results) == 0 {
				return r, errors.New("no more results")
			}
			r, results = results[0], results[1:]
			return r, nil
		}
	}
	f := versusFlags{rounds: rounds, duration: time.Second, json: json}
	err = a.compare(t.Context(), f, cells, play(postfix), play(holdfast))
	return printed.String(), asked, err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1]
}

// TestCompare: in each round both sides of each cell get the same load in turn,
// and what counts is the median of the ratios of the rounds, not the ratio of
// medians.
func TestCompare(t *testing.T) {
	ms := time.Millisecond
	file := filepath.Join(t.TempDir(), "r.json")
	out, asked, err := comparison(t, []cell{{load.Mix, 100}, {load.Size4K, 100}}, 3, file,
		[]load.Result{perSecond(100, 200*ms), perSecond(100, 40*ms), perSecond(1000, 300*ms), perSecond(10, 40*ms), perSecond(10, 100*ms), perSecond(10, 40*ms)},
		[]load.Result{perSecond(200, 100*ms), perSecond(777, 10*ms), perSecond(1500, 100*ms), perSecond(77, 10*ms), perSecond(90, 100*ms), perSecond(78, 10*ms)})
	if err != nil {
		t.Fatal(err)
	}
	// mix: 2.0, 1.5, 9.0; 4k: 7.77, 7.7, 7.8.
	if got := lastLine(out); got != "headline mix_100=2.00 mix_20=0.00 kb4_100=7.77" {
		t.Errorf("the last line is %q", got)
	}
	lines := strings.Split(out, "\n")
	if len(lines) != 5 || !strings.HasSuffix(out, "\n") ||
		strings.Join(strings.Fields(lines[1]), " ") != "mix:100 100.0 200.0 2.00 (1.50-9.00); 100.0 ms against 200.0 ms; 2.00 (1.00-3.00)" ||
		strings.Join(strings.Fields(lines[2]), " ") != "4k:100 10.0 78.0 7.77 (7.70-7.80); 10.0 ms against 40.0 ms; 4.00 (4.00-4.00)" {
		t.Errorf("%s", out)
	}
	if len(asked) != 12 {
		t.Fatalf("%d loads were given", len(asked))
	}
	for i, o := range asked {
		if sizes := []load.Sizes{load.Mix, load.Size4K}[i/2%2]; o.Sizes != sizes || o.Sessions != 100 || o.Duration != time.Second || o.Seed != uint64(1+i/4) || o.PerConnection > 1 {
			t.Errorf("load %d is %+v", i, o)
		}
		o.Targets = []string{"a:1"}
		if err := o.Check(); err != nil {
			t.Errorf("load %d: %v", i, err)
		}
	}
	var matches []match
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &matches)
	}
	if err != nil || len(matches) != 6 || matches[5].Round != 3 || matches[5].Cell != (cell{load.Size4K, 100}) || matches[5].Holdfast.Accepted != 78 {
		t.Errorf("%v, %v", matches, err)
	}
}

// TestCompareFailures: a cell in which a side lost messages stands in the table as
// such and fails the command, whichever side it was, with the figures all the same.
func TestCompareFailures(t *testing.T) {
	well := perSecond(10, time.Millisecond)
	ill := well
	ill.Failed, ill.FirstFailure = map[int]int{451: 2, 0: 1}, "451 4.3.0 later"
	for name, c := range map[string]struct {
		postfix, holdfast []load.Result
		want              string
	}{
		"postfix":  {[]load.Result{well, ill}, []load.Result{well, well}, "round 2, mix:20: 3 messages failed at Postfix (451 4.3.0 later), 0 at Holdfast (none)"},
		"holdfast": {[]load.Result{well, well}, []load.Result{ill, well}, "round 1, mix:20: 0 messages failed at Postfix (none), 3 at Holdfast (451 4.3.0 later)"},
	} {
		out, _, err := comparison(t, []cell{{load.Mix, 20}}, 2, "", c.postfix, c.holdfast)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(out, "1.00 (1.00-1.00); 3 FAILED\n") || lastLine(out) != "headline mix_100=0.00 mix_20=1.00 kb4_100=0.00" {
			t.Errorf("%s: %s", name, out)
		}
	}
	out, _, err := comparison(t, []cell{{load.Mix, 20}}, 1, "", []load.Result{well}, []load.Result{well})
	if err != nil || strings.Contains(out, "FAILED") {
		t.Errorf("without failures: %v, %s", err, out)
	}
	none := load.Result{Elapsed: time.Second}
	if _, _, err := comparison(t, []cell{{load.Mix, 20}}, 1, "", []load.Result{none}, []load.Result{well}); err == nil || !strings.Contains(err.Error(), "Postfix: nothing was accepted") {
		t.Errorf("a Postfix that accepts nothing: %v", err)
	}
	if _, _, err := comparison(t, []cell{{load.Mix, 20}}, 1, "", []load.Result{well}, nil); err == nil || !strings.Contains(err.Error(), "round 1, mix:20, Holdfast: ") {
		t.Errorf("a Holdfast that does not start: %v", err)
	}
}

func TestEnoughSpace(t *testing.T) {
	dir := t.TempDir()
	if err := enoughSpace(dir, 1); err != nil {
		t.Error(err)
	}
	if err := enoughSpace(dir, 1<<60); err == nil || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("an exbibyte: %v", err)
	}
}
