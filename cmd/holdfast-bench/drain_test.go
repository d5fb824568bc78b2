package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

func TestParseDrainCells(t *testing.T) {
	got, err := parseDrainCells([]string{"4k:300", "64k:50000"})
	if want := []drainCell{{Size: letter.Size4K, Messages: 300}, drainLong}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, text := range []string{"", "4k", "4k:", ":4", "mix:10", "1m:10", "4k:0", "4k:-1", "4k:x", "4k:1:2", "4k:1000000001"} {
		if cells, err := parseDrainCells([]string{text}); err == nil {
			t.Errorf("%q gives %v", text, cells)
		}
	}
	if cells, err := parseDrainCells([]string{"4k:1", "64k:1", "4k:1"}); err == nil {
		t.Errorf("the same cell twice gives %v", cells)
	}
}

// TestWithDelay: cells that would take long over a distance are measured without
// one only.
func TestWithDelay(t *testing.T) {
	if got := withDelay(headlineDrains, 0); !slices.Equal(got, headlineDrains) {
		t.Errorf("without a delay: %v", got)
	}
	far := drainShort
	far.RoundTrip = 50 * time.Millisecond
	if got := withDelay(headlineDrains, far.RoundTrip); !slices.Equal(got, []drainCell{drainShort, drainLong, far}) {
		t.Errorf("with a delay: %v", got)
	}
	if got := far.String(); got != "4k:5000+50ms" {
		t.Errorf("%q", got)
	}
}

// TestDrainDisk: three times what is queued must fit, and something be left; a
// command that needs more than there is does nothing.
func TestDrainDisk(t *testing.T) {
	need := drainDisk(headlineDrains)
	if least := uint64(3*50_000*64<<10 + 10<<30); need < least || need > least+5<<30 {
		t.Errorf("%d MiB, want at least %d", need>>20, least>>20)
	}
	if short := drainDisk(headlineDrains[:1]); short >= need {
		t.Errorf("%d MiB for the short queue", short>>20)
	}
	code, out, complaint := bench(t, "drain", "--cells", "64k:1000000000")
	if code != exitFailure || out != "" || !strings.Contains(complaint, "MiB free; this needs") {
		t.Errorf("a thousand million messages: status %d, %q, %q", code, out, complaint)
	}
}

// drained is a result of that many messages in a second.
func drained(messages int, entries uint64) drainResult {
	return drainResult{
		Messages: messages, Elapsed: time.Second, First: 10 * time.Millisecond, Connections: 20, ConnectionsMost: 20, Entries: entries,
		Ledger: ledger.Report{Accepted: messages, Delivered: messages},
	}
}

// TestDrainFault: what a primary must not see is an error; copies are none.
func TestDrainFault(t *testing.T) {
	well := drained(10, 0)
	well.Ledger.Duplicates = 3
	if err := well.fault(); err != nil {
		t.Errorf("with duplicates: %v", err)
	}
	for name, spoil := range map[string]func(*drainResult){
		"1 lost":         func(r *drainResult) { r.Ledger.Lost, r.Ledger.Delivered = 1, 9 },
		"1 altered":      func(r *drainResult) { r.Ledger.Altered = 1 },
		"1 unexpected":   func(r *drainResult) { r.Ledger.Unexpected = 1 },
		"one less":       func(r *drainResult) { r.Ledger.Accepted, r.Ledger.Delivered = 9, 9 },
		"21 connections": func(r *drainResult) { r.ConnectionsMost = 21 },
		"1 violation":    func(r *drainResult) { r.Violations = 1 },
	} {
		r := drained(10, 0)
		spoil(&r)
		if r.fault() == nil {
			t.Errorf("%s: no fault", name)
		}
	}
}

func TestDrainResult(t *testing.T) {
	r := drained(300, 45)
	r.Elapsed, r.First = 1500*time.Millisecond, 40*time.Millisecond
	if r.perSecond() != 200 || r.entriesPerMessage() != 0.15 {
		t.Errorf("%v a second, %v entries", r.perSecond(), r.entriesPerMessage())
	}
	want := "200.0 messages/s, 1.5s in all, the first after 40ms; 20 connections, 20 at a time; accepted=300 delivered=300 lost=0 altered=0 duplicates=0; 0.150 log entries a message"
	if got := r.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestPrintDrains: what counts is the median of the ratios of the rounds, cells that
// were not measured are 0.00, and what failed stands in its row.
func TestPrintDrains(t *testing.T) {
	far := drainShort
	far.RoundTrip = 50 * time.Millisecond
	cells := []drainCell{drainShort, far}
	var matches []drainMatch
	for i, rates := range [][2]int{{100, 200}, {100, 150}, {1000, 9000}} {
		near := drainMatch{Round: 1 + i, Cell: drainShort, Postfix: drained(rates[0], 0), Holdfast: drained(rates[1], uint64(rates[1]/4))}
		matches = append(matches, near, drainMatch{Round: 1 + i, Cell: far, Postfix: drained(10, 0), Holdfast: drained(55+i, 11)})
	}
	matches[0].Holdfast.Ledger.Duplicates = 2
	matches[2].Postfix.ConnectionsMost = 21
	var printed bytes.Buffer
	a := &app{out: &printed, quiet: true}
	a.printDrains(drainFlags{delay: far.RoundTrip}, cells, matches)
	lines := strings.Split(printed.String(), "\n")
	if len(lines) != 6 || lines[5] != "" {
		t.Fatalf("%s", printed.String())
	}
	for i, want := range []string{
		"4k:5000 100.0 200.0 2.00 (1.50-9.00); 0.25 log entries a message; first after 10 and 10 ms; at most 21 and 20 connections; 0 and 2 duplicates; FAILED in 1 rounds",
		"4k:5000+50ms 10.0 56.0 5.60 (5.50-5.70); 0.20 log entries a message; first after 10 and 10 ms; at most 20 and 20 connections; 0 and 0 duplicates",
		"headline_delay drain_5k_4k=5.60",
		"headline drain_5k_4k=2.00 drain_50k_64k=0.00",
	} {
		if got := strings.Join(strings.Fields(lines[1+i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", 1+i, got, want)
		}
	}
	printed.Reset()
	a.printDrains(drainFlags{}, []drainCell{drainLong}, []drainMatch{{Cell: drainLong, Postfix: drained(2, 0), Holdfast: drained(3, 1)}})
	if strings.Contains(printed.String(), "delay") || lastLine(printed.String()) != "headline drain_5k_4k=0.00 drain_50k_64k=1.50" {
		t.Errorf("%s", printed.String())
	}
}

// TestCompareDrains: both sides of each cell get the same messages in turn, each
// begins anew, and a ceiling that was broken fails the command with the figures all
// the same.
func TestCompareDrains(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	var printed bytes.Buffer
	a := &app{out: &printed, quiet: true}
	var opened []*fakeHolder
	open := func(connections int) opener {
		return func(context.Context) (holder, error) {
			h := newFakeHolder(t, connections)
			opened = append(opened, h)
			return h, nil
		}
	}
	cells := []drainCell{{Size: letter.Size4K, Messages: 60}, {Size: letter.Size64K, Messages: 30}}
	f := drainFlags{rounds: 2, json: file, limit: time.Minute}
	if err := a.compareDrains(t.Context(), f, cells, open(3), open(5)); err != nil {
		t.Fatal(err)
	}
	if len(opened) != 8 {
		t.Fatalf("%d sides were opened", len(opened))
	}
	for i, h := range opened {
		if !h.closed || h.failed || h.connections != []int{3, 5}[i%2] || h.taken != cells[i/2%2].Messages {
			t.Errorf("side %d had %d messages and %d connections; closed %v, failed %v", i, h.taken, h.connections, h.closed, h.failed)
		}
		if i%2 == 1 && h.sum() != opened[i-1].sum() {
			t.Errorf("sides %d and %d were given other messages", i-1, i)
		}
	}
	if opened[0].sum() == opened[4].sum() {
		t.Error("both rounds had the same messages")
	}
	var matches []drainMatch
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &matches)
	}
	if err != nil || len(matches) != 4 || matches[3].Round != 2 || matches[3].Cell != cells[1] || matches[3].Holdfast.Messages != 30 {
		t.Errorf("%v, %v", matches, err)
	}
	if got := lastLine(printed.String()); got != "headline drain_5k_4k=0.00 drain_50k_64k=0.00" {
		t.Errorf("the last line is %q", got)
	}

	printed.Reset()
	f = drainFlags{rounds: 1, limit: time.Minute}
	err = a.compareDrains(t.Context(), f, cells[:1], open(3), open(drainCeiling+1))
	if err == nil || err.Error() != "round 1, 4k:60, Holdfast: 21 connections at a time, and 20 are the ceiling" {
		t.Errorf("above the ceiling: %v", err)
	}
	if !strings.Contains(printed.String(), "; at most 3 and 21 connections; 0 and 0 duplicates; FAILED in 1 rounds\n") {
		t.Errorf("above the ceiling: %s", printed.String())
	}

	broken := errors.New("it does not start")
	err = a.compareDrains(t.Context(), f, cells[:1], open(1), func(context.Context) (holder, error) { return nil, broken })
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "round 1, 4k:60, Holdfast: ") {
		t.Errorf("a side that does not start: %v", err)
	}
}

// TestDrainEndsBadly: a side that never defers, or never delivers, is given up, and
// closed as failed.
func TestDrainEndsBadly(t *testing.T) {
	never := errors.New("never")
	for name, spoil := range map[string]func(*fakeHolder){
		"deferred": func(h *fakeHolder) { h.never = never },
		"flush":    func(h *fakeHolder) { h.flushFails = never },
		"refuses":  func(h *fakeHolder) { h.refuse = never },
	} {
		var h *fakeHolder
		a := &app{out: &bytes.Buffer{}, quiet: true}
		_, err := a.drainSide(t.Context(), time.Minute, func(context.Context) (holder, error) {
			h = newFakeHolder(t, 1)
			spoil(h)
			return h, nil
		}, drainCell{Size: letter.Size4K, Messages: 3}, 1)
		if err == nil || !h.failed || !h.closed {
			t.Errorf("%s: %v; failed %v, closed %v", name, err, h.failed, h.closed)
		}
		if name != "refuses" && !errors.Is(err, never) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDrainInterrupted: a side that is interrupted is closed, and no failure that
// somebody wants to look at.
func TestDrainInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var h *fakeHolder
	a := &app{out: &bytes.Buffer{}, quiet: true}
	_, err := a.drainSide(ctx, time.Minute, func(context.Context) (holder, error) {
		h = newFakeHolder(t, 1)
		cancel()
		return h, nil
	}, drainCell{Size: letter.Size4K, Messages: 3}, 1)
	if !errors.Is(err, context.Canceled) || !h.closed || h.failed {
		t.Errorf("%v; failed %v, closed %v", err, h.failed, h.closed)
	}
}

// TestDrainage: what the ledger says of a delivery that loses, alters or repeats.
func TestDrainage(t *testing.T) {
	const messages = 40
	for name, c := range map[string]struct {
		relay     func(i int, content []byte) [][]byte
		roundTrip time.Duration
		lost      bool
		check     func(drainResult) bool
	}{
		"well": {check: func(r drainResult) bool {
			return r.fault() == nil && r.Connections == 4 && r.ConnectionsMost <= 4 && r.Entries == 7 && r.Elapsed >= r.First && r.First > 0
		}},
		"far away": {roundTrip: 2 * time.Millisecond, check: func(r drainResult) bool {
			return r.fault() == nil && r.ConnectionsMost <= 4
		}},
		"one twice": {
			relay: func(i int, content []byte) [][]byte { return slices.Repeat([][]byte{content}, 1+btoi(i == 9)) },
			check: func(r drainResult) bool { return r.fault() == nil && r.Ledger.Duplicates == 1 },
		},
		"one altered": {
			relay: func(i int, content []byte) [][]byte {
				if i == 9 {
					content = bytes.Replace(content, []byte("Subject"), []byte("Sabject"), 1)
				}
				return [][]byte{content}
			},
			check: func(r drainResult) bool { return errors.Is(r.fault(), errFaults) && r.Ledger.Altered == 1 },
		},
		"one lost": {
			relay: func(i int, content []byte) [][]byte { return slices.Repeat([][]byte{content}, btoi(i != 9)) },
			lost:  true,
			check: func(r drainResult) bool { return r.Ledger.Lost == 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHolder(t, 4)
			defer h.close(t.Context(), false)
			if c.relay != nil {
				h.relay = c.relay
			}
			d := drainage{
				h: h, seed: 1, book: ledger.New(), stall: 50 * time.Millisecond,
				cell: drainCell{Size: letter.Size4K, Messages: messages, RoundTrip: c.roundTrip},
			}
			if err := d.fill(t.Context()); err != nil {
				t.Fatal(err)
			}
			err := d.run(t.Context())
			if errors.Is(err, errGone) != c.lost || (err != nil) != c.lost {
				t.Fatal(err)
			}
			if !c.check(d.r) {
				t.Errorf("%v; %+v", d.r, d.r)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestTally: the clock stops at the last message that was missing; copies and
// those that come again change nothing.
func TestTally(t *testing.T) {
	tally := newTally(ledger.New(), 2)
	say := func(who string) {
		t.Helper()
		if err := tally.arrival(ledger.Arrival{Recipient: who}); err != nil {
			t.Fatal(err)
		}
	}
	ended := func() bool {
		select {
		case <-tally.all:
			return true
		default:
			return false
		}
	}
	say("a")
	say("a")
	if ended() || tally.arrived() != 1 || tally.first.IsZero() {
		t.Errorf("after one and its copy: %d arrived, ended %v", tally.arrived(), ended())
	}
	say("b")
	last := tally.last
	say("a")
	say("b")
	if !ended() || tally.last != last || last.Before(tally.first) {
		t.Errorf("first %v, last %v, then %v", tally.first, last, tally.last)
	}
	// Whoever still has something is waited for, until the context ends.
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	waiting := newTally(ledger.New(), 1)
	enough := errors.New("enough")
	err := waiting.wait(ctx, time.Millisecond, func(context.Context) (int, error) {
		if asked++; asked == 5 {
			cancel(enough)
		}
		return 1, nil
	})
	if !errors.Is(err, enough) || !strings.HasPrefix(fmt.Sprint(err), "0 of 1 messages have arrived") {
		t.Errorf("%v", err)
	}
}
