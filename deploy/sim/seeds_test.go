package sim

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
)

var (
	seeds = flag.Int("seeds", 3, "how many seeds to run")
	first = flag.Uint64("first", 1, "the first seed")
)

const (
	lettersPerSeed = 200
	tormentTime    = 10 * time.Minute
	// drainTime covers several doubt waits: a message in doubt is left alone for
	// ten minutes, and may come into doubt again.
	drainTime = 3 * time.Hour
)

// TestSeeds runs one simulated cluster per seed, and closes with the line that
// counts.
func TestSeeds(t *testing.T) {
	failed := 0
	for i := range *seeds {
		seed := *first + uint64(i)
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runSeed(t, seed) }) {
			failed++
		}
	}
	fmt.Printf("seeds=%d failed=%d\n", *seeds, failed)
}

// A tailLog keeps the end of what the nodes log, for a seed that fails.
type tailLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 256 << 10

func (l *tailLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > tailBytes {
		l.buf.Next(l.buf.Len() - tailBytes/2)
	}
	return l.buf.Write(p)
}

func runSeed(t *testing.T, seed uint64) {
	dir := t.TempDir()
	tail := new(tailLog)
	defer func() {
		if t.Failed() {
			t.Logf("the end of the log:\n%s", tail.buf.String())
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		led := new(reigns)
		w, err := NewWorld(seed, dir, slog.New(led.handler(slog.NewTextHandler(tail, nil))))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.segments = true
		seen := new(copies)
		w.arriving = seen.see
		ctx := t.Context()
		for _, name := range nodeNames {
			if err := w.Start(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		setup, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if err := w.PutDomains(setup); err != nil {
			t.Fatal(err)
		}

		// The primary is down for the first half of the time, by and large.
		torment, done := context.WithTimeout(ctx, tormentTime)
		defer done()
		sent := make(chan error, 1)
		go func() {
			stats, err := w.Send(ctx, lettersPerSeed, 4, 10*time.Second)
			t.Logf("sender: %+v", stats)
			sent <- err
		}()
		up := time.AfterFunc(tormentTime/2, func() { _ = w.PrimaryUp() })
		defer up.Stop()
		names, err := w.Torment(torment)
		t.Logf("faults: %s", strings.Join(names, ", "))
		if err != nil {
			t.Fatal(err)
		}
		w.network.HealAll()
		w.faults.Set()
		if err := w.PrimaryUp(); err != nil {
			t.Fatal(err)
		}
		w.resumes(ctx, t)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		w.drain(ctx, t)
		w.atRest(ctx, t)
		led.check(t)
		report := w.ledger.Check()
		t.Logf("seed=%d %s unanswered=%d virtual=%s", seed, report, report.Unanswered, time.Since(began).Round(time.Second))
		if !report.OK() || report.Accepted == 0 || report.NotAccepted > 0 {
			t.Errorf("the ledger does not balance: %+v", report)
		}
		seen.check(t, w.nodes[nodeNames[0]].node.Member().View().Totals())
		w.fellLock.Lock()
		defer w.fellLock.Unlock()
		if len(w.fell) > 0 {
			t.Errorf("nodes failed that nobody had broken: %s", strings.Join(w.fell, "; "))
		}
	})
}

// drain waits until everything that was accepted has arrived and the queue is
// empty, or the time is over.
func (w *World) drain(ctx context.Context, t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(drainTime)
	for time.Now().Before(deadline) {
		if missing, _ := w.ledger.Missing(); missing == 0 && w.empty() {
			return
		}
		// What the misbehaving primary refused for good is held, and the domain that
		// it refused too much of is stopped: let them go.
		for _, name := range nodeNames {
			p := w.nodes[name]
			if p == nil {
				continue
			}
			view := p.node.Member().View()
			for m := range view.Messages(zeroID) {
				if hasHeld(m) {
					_ = w.Do(ctx, fsm.Release{ID: m.ID})
				}
			}
			for _, d := range relayDomains {
				if view.NextHop(d).Stopped {
					_ = w.Do(ctx, fsm.ResumeDomain{Name: d})
				}
			}
			break
		}
		time.Sleep(5 * time.Second)
	}
	missing, accepted := w.ledger.Missing()
	t.Errorf("after %s: %d of %d accepted have not arrived; queue empty: %v", drainTime, missing, accepted, w.empty())
}

// empty reports whether every node's queue has no unfinished message, and all
// nodes agree.
func (w *World) empty() bool {
	for _, name := range nodeNames {
		p := w.nodes[name]
		if p == nil || p.node.Member().View().Totals().Live > 0 {
			return false
		}
	}
	return true
}
