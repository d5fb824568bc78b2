package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/rival"
)

func TestParsePayloadCells(t *testing.T) {
	got, err := parsePayloadCells([]string{"4k:100", "1024k:1"})
	if want := []payloadCell{{4096, 100}, {1 << 20, 1}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "4k", "4:100", "4k:0", "0k:1", "1025k:1", "4k:x", "xk:4"} {
		if got, err := parsePayloadCells([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestSpread(t *testing.T) {
	if got := spread(20, 3); !slices.Equal(got, []int{7, 7, 6}) {
		t.Errorf("20 among 3: %v", got)
	}
	if got := spread(2, 3); !slices.Equal(got, []int{1, 1, 0}) {
		t.Errorf("2 among 3: %v", got)
	}
}

func TestJoinPublished(t *testing.T) {
	part := func(elapsed time.Duration, latencies ...uint32) rival.Published {
		return rival.Published{Accepted: len(latencies), Elapsed: elapsed, LatenciesUS: latencies}
	}
	many := make([]uint32, 97)
	for i := range many {
		many[i] = 500
	}
	broken := part(time.Second, 100)
	broken.Failed, broken.FirstFailure = 2, "full"
	got := joinPublished([]rival.Published{part(4*time.Second, many...), part(5*time.Second, 900, 1000), broken})
	// The slowest of them decides how long it took.
	want := payloadSide{PerSecond: 20, P50: 500 * time.Microsecond, P99: 1000 * time.Microsecond, Accepted: 100, Failed: 2, FirstFailure: "full"}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := joinPublished(nil); got != (payloadSide{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestPayloadMatches(t *testing.T) {
	var out bytes.Buffer
	match := func(c payloadCell, theirs, ours float64) payloadMatch {
		return payloadMatch{Cell: c, JetStream: payloadSide{PerSecond: theirs}, Holdfast: payloadSide{PerSecond: ours}}
	}
	// Of each round its own ratio, and of those the median.
	(&app{out: &out}).printPayloadMatches(payloadCells[:2], []payloadMatch{
		match(payloadCells[0], 100, 200), match(payloadCells[0], 10, 90), match(payloadCells[0], 1000, 1000),
		match(payloadCells[1], 10, 25),
	})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if got, want := lines[len(lines)-1], "jetstream kb64_20=2.00 kb512_20=2.50 kb4_100=0.00"; got != want {
		t.Errorf("closing line %q, want %q", got, want)
	}
	if !strings.Contains(lines[1], "2.00 (1.00-9.00)") {
		t.Errorf("row %q", lines[1])
	}
}
