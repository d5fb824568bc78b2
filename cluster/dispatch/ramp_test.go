package dispatch

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm"
)

func idle(fsm.NodeName) bool { return false }

func clean(token fsm.Token) Feedback {
	return Feedback{Token: token, Answered: 10, Mean: 10 * time.Millisecond}
}

// TestRampBeginsWithOneMessage: one message, over one connection of one node; the
// others wait. Then there is one connection more for each clean lease, up to the
// ceiling.
func TestRampBeginsWithOneMessage(t *testing.T) {
	r, now := newRamp(), time.Now()
	if messages, connections := r.grant("a", 1, now, time.Minute, 4, idle); messages != 1 || connections != 1 {
		t.Errorf("the first gets %d messages over %d connections", messages, connections)
	}
	if messages, connections := r.grant("b", 1, now, time.Minute, 4, idle); messages != 0 || connections != 0 {
		t.Errorf("the second gets %d messages over %d connections", messages, connections)
	}
	// It was put off: that is an answer, and no reason to send more.
	r.note(Feedback{Token: 1, Deferred: 1}, 4)
	if messages, _ := r.grant("a", 1, now, time.Minute, 4, idle); messages != 1 {
		t.Errorf("%d messages behind one that was put off", messages)
	}
	r.note(Feedback{Token: 2, Answered: 1}, 4)
	if messages, _ := r.grant("a", 1, now, time.Minute, 4, idle); messages <= 1 {
		t.Errorf("%d messages behind one that was taken", messages)
	}

	r = newRamp()
	for n, want := range []int{2, 3, 4, 4, 4} {
		r.note(clean(fsm.Token(n+1)), 4)
		messages, connections := r.grant("a", 1, now, time.Minute, 4, idle)
		if connections != want {
			t.Errorf("%d connections after %d clean leases, want %d", connections, n+1, want)
		}
		// Short leases until the ceiling is reached: what was learnt in a long one
		// would come late.
		if short := messages == cohortMessages; short != (want < 4) || messages < cohortMessages {
			t.Errorf("%d messages over %d connections", messages, connections)
		}
	}
	if _, connections := r.grant("a", 1, now, time.Minute, 2, idle); connections != 2 {
		t.Errorf("%d connections under a ceiling of 2", connections)
	}
}

// TestRampBeginsAnew: what was granted before proves nothing of a next hop that is back.
func TestRampBeginsAnew(t *testing.T) {
	r, now := newRamp(), time.Now()
	r.grant("a", 1, now, time.Minute, 4, idle)
	r.last = 7
	r = r.anew()
	r.note(clean(7), 4)
	if messages, _ := r.grant("a", 1, now, time.Minute, 4, idle); messages != 1 {
		t.Errorf("%d messages behind a lease of before", messages)
	}
	if messages, _ := r.grant("b", 1, now, time.Minute, 4, idle); messages != 0 {
		t.Errorf("%d messages beside the first", messages)
	}
	r.note(clean(8), 4)
	if messages, _ := r.grant("a", 1, now, time.Minute, 4, idle); messages <= 1 {
		t.Errorf("%d messages behind one that was taken", messages)
	}
}

// TestRampHalves: 421, a timeout, mostly 4yz, or replies three times as slow halve
// it, once for all leases that were under way; then it grows by one a round.
func TestRampHalves(t *testing.T) {
	full := func() *ramp {
		r := newRamp()
		for n := range 16 {
			r.note(clean(fsm.Token(n+1)), 16)
		}
		r.last = 25
		return r
	}
	for name, f := range map[string]Feedback{
		"lost":     {Token: 20, Answered: 9, Lost: true},
		"deferred": {Token: 20, Answered: 3, Deferred: 4},
		"slow":     {Token: 20, Answered: 10, Mean: slowLeast},
	} {
		r := full()
		if r.window != 16 {
			t.Fatal(r.window)
		}
		r.note(f, 16)
		r.note(f, 16)
		if r.window != 8 {
			t.Errorf("%s: %v connections, want 8", name, r.window)
		}
		f.Token, r.last = 26, 30
		r.note(f, 16)
		if r.window != 4 {
			t.Errorf("%s in a later lease: %v connections, want 4", name, r.window)
		}
		for range 4 {
			r.note(clean(31), 16)
		}
		if r.window < 4.8 || r.window > 5 {
			t.Errorf("%s: %v connections after a clean round, want about 5", name, r.window)
		}
		for n := range 9 {
			f.Token = fsm.Token(100 + 10*n)
			r.last = f.Token
			r.note(f, 16)
		}
		if r.window != 1 {
			t.Errorf("%s: %v connections after trouble without end", name, r.window)
		}
	}
	for name, f := range map[string]Feedback{
		"nothing":      {Token: 20},
		"some 4yz":     {Token: 20, Answered: 4, Deferred: 4},
		"quick enough": {Token: 20, Answered: 10, Mean: slowLeast - 1},
		"one slow one": {Token: 20, Answered: meanSampleMin - 1, Mean: time.Minute},
	} {
		r := full()
		r.note(f, 16)
		if r.window != 16 {
			t.Errorf("%s: %v connections", name, r.window)
		}
	}
}

// TestRampCountsConnections: whatever holders do, those that were granted leases have
// no more connections than the window, and no holder is forgotten before its time.
func TestRampCountsConnections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const stale = time.Minute
		ceiling := rapid.IntRange(1, 12).Draw(t, "ceiling")
		r, now := newRamp(), time.Now()
		has := make(map[fsm.NodeName]activity) // what each last had when it was granted one
		busy := make(map[fsm.NodeName]bool)
		token := fsm.Token(0)
		t.Repeat(map[string]func(*rapid.T){
			"pull": func(t *rapid.T) {
				h := rapid.SampledFrom([]fsm.NodeName{"a", "b", "c"}).Draw(t, "holder")
				open := rapid.IntRange(0, 14).Draw(t, "open")
				messages, connections := r.grant(h, open, now, stale, ceiling, func(h fsm.NodeName) bool { return busy[h] })
				if messages == 0 {
					return
				}
				if open > connections || connections > ceiling {
					t.Fatalf("granted with %d open, of %d", open, connections)
				}
				token++
				r.last = token
				has[h], busy[h] = activity{max(1, open), now}, rapid.Bool().Draw(t, "long")
				total := 0
				for holder, a := range has {
					if now.Sub(a.at) < stale || busy[holder] {
						total += a.connections
					}
				}
				if total > ceiling || float64(total) > r.window {
					t.Fatalf("%d connections with a window of %v", total, r.window)
				}
			},
			"note": func(t *rapid.T) {
				r.note(Feedback{
					Token: fsm.Token(rapid.IntRange(0, int(token)).Draw(t, "token")), Answered: rapid.IntRange(0, 5).Draw(t, "answered"),
					Deferred: rapid.IntRange(0, 5).Draw(t, "deferred"), Lost: rapid.Bool().Draw(t, "lost"),
					Mean: time.Duration(rapid.IntRange(0, 2000).Draw(t, "mean")) * time.Millisecond,
				}, ceiling)
				if r.window < 1 || r.window > float64(ceiling) {
					t.Fatalf("window %v of %d", r.window, ceiling)
				}
			},
			"close": func(t *rapid.T) {
				h := rapid.SampledFrom([]fsm.NodeName{"a", "b", "c"}).Draw(t, "holder")
				left := rapid.IntRange(-1, 5).Draw(t, "left")
				r.closed(h, left)
				if a, ok := has[h]; ok {
					a.connections = min(a.connections, max(left, 0))
					has[h] = a
				}
				busy[h] = busy[h] && left > 0
			},
			"wait": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 70).Draw(t, "s")) * time.Second) },
		})
	})
}
