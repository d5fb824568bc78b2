package fsm_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
)

// drawn makes choices that rapid can repeat and shrink.
type drawn struct{ t *rapid.T }

func (d drawn) Choose(what string, n int) int { return rapid.IntRange(0, n-1).Draw(d.t, what) }

// seeded makes choices that a seed repeats.
type seeded struct{ r *rand.Rand }

func (s seeded) Choose(_ string, n int) int { return s.r.IntN(n) }

func newSeeded(seed uint64) seeded { return seeded{rand.New(rand.NewPCG(seed, 0))} }

// TestHistories runs random histories against the naive twin, with every
// invariant checked after every command. A failure prints what repeats it.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := fsmtest.NewHistory(fsm.New(), fsmtest.NewTwin(), drawn{t})
		if err := h.Run(60); err != nil {
			t.Fatalf("%s\n\n%v", h.Log(), err)
		}
	})
}

// TestLongHistories is the same by seed, without a need to shrink.
func TestLongHistories(t *testing.T) {
	seeds, steps := uint64(20), 400
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		h := fsmtest.NewHistory(fsm.New(), fsmtest.NewTwin(), newSeeded(seed))
		if err := h.Run(steps); err != nil {
			t.Fatalf("seed %d:\n%s\n\n%v", seed, h.Log(), err)
		}
	}
}

var modelSteps = flag.Uint64("steps", 200_000, "how many commands TestModel applies")

const (
	// modelCheck is after how many of its commands TestModel checks everything.
	modelCheck = 256
	// modelHistory is how long each of its histories is: the queue stays short.
	modelHistory = 2_000
	// modelTwin is which share of them the twin follows, too.
	modelTwin = 16
)

// TestModel runs as many histories as make so many commands, most of which are not
// looked at one by one, on all processors. A seed that fails is run again step by step.
func TestModel(t *testing.T) {
	const first = 1_000
	began := time.Now()
	var seeds, steps atomic.Uint64
	var running sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for steps.Load() < *modelSteps && !t.Failed() {
				n, err := model(first + seeds.Add(1) - 1)
				if steps.Add(n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	fmt.Printf("model seeds=%d steps=%d steps_per_s=%.0f\n", seeds.Load(), steps.Load(), float64(steps.Load())/time.Since(began).Seconds())
}

// model runs one history, and returns how many commands it had.
func model(seed uint64) (steps uint64, err error) {
	var twin *fsmtest.Twin // it takes longer than all the rest
	if seed%modelTwin == 0 {
		twin = fsmtest.NewTwin()
	}
	h := fsmtest.NewHistory(fsm.New(), twin, newSeeded(seed)).Sparsely(modelCheck)
	if err = h.Run(modelHistory); err == nil {
		return h.Steps(), nil
	}
	closer := fsmtest.NewHistory(fsm.New(), fsmtest.NewTwin(), newSeeded(seed))
	again := closer.Run(modelHistory)
	return h.Steps(), fmt.Errorf("seed %d: %w\nstep by step:\n%s\n\n%v", seed, err, closer.Log(), again)
}

// TestSnapshotsAreLossless: a State that was encoded and decoded goes on
// exactly as the one that it was taken from, and encodes to the same bytes.
func TestSnapshotsAreLossless(t *testing.T) {
	for seed := range uint64(20) {
		s := fsm.New()
		h := fsmtest.NewHistory(s, nil, newSeeded(seed))
		if err := h.Run(300); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		first := encoded(t, s)
		copied, err := fsm.Decode(bytes.NewReader(first))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(first, encoded(t, copied)) {
			t.Fatalf("seed %d: the decoded state encodes otherwise", seed)
		}
		if s.Digest() != copied.Digest() {
			t.Fatalf("seed %d: the decoded state has another digest", seed)
		}
		ahead := copied.Snapshot()
		ahead.Apply(ahead.Applied()+1, fsm.Command{Action: fsm.Tick{Elapsed: 1}})
		if s.Digest() == ahead.Digest() {
			t.Fatalf("seed %d: a state that has seen more has the same digest", seed)
		}
		for i := range fsm.Index(80) {
			c := fsm.Command{Action: fsm.Tick{Elapsed: 60_000}}
			s.Apply(s.Applied()+i+1, c)
			copied.Apply(copied.Applied()+i+1, c)
			if !bytes.Equal(encoded(t, s), encoded(t, copied)) {
				t.Fatalf("seed %d: they part after %d ticks", seed, i+1)
			}
		}
	}
}

func encoded(t testing.TB, s *fsm.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestControls takes the rules of the protocol away one at a time. Each must be
// missed, by the invariants alone and by the twin: else the histories above
// would prove nothing about it.
func TestControls(t *testing.T) {
	for _, rule := range []string{
		"match only what lives",
		"settle",
		"settle before match",
		"guard on expire",
		"check at grant",
		"fence",
		"hold keeps the lease",
	} {
		t.Run(rule, func(t *testing.T) {
			for _, twin := range []bool{false, true} {
				seed, err := breach(rule, twin)
				if err == nil {
					t.Fatalf("no history of %d misses the rule (with twin: %v)", seed, twin)
				}
				t.Logf("with twin %v, seed %d: %v", twin, seed, err)
			}
		})
	}
}

// breach looks for a history in which a rule is missed.
func breach(rule string, twin bool) (uint64, error) {
	const seeds = 200
	for seed := range uint64(seeds) {
		s := fsm.New()
		s.Waive(rule)
		var w *fsmtest.Twin
		if twin {
			w = fsmtest.NewTwin()
		}
		if err := fsmtest.NewHistory(s, w, newSeeded(seed)).Run(300); err != nil {
			return seed, err
		}
	}
	return seeds, nil
}
