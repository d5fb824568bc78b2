package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/deploy/torture/fabric"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// idleNemesis has nodes of which none runs, and no disks.
func idleNemesis(t *testing.T, nodes int) *nemesis {
	t.Helper()
	f := &fleet.Fleet{}
	for range nodes {
		f.Nodes = append(f.Nodes, &fleet.Node{Dir: filepath.Join(t.TempDir(), "node")})
	}
	n := &nemesis{cast: &cast{diary: newDiary(io.Discard, time.Now()), fabric: fabric.New(1), fleet: f, faults: sink.NewFaults(1)}}
	n.look()
	return n
}

// Every kind of the list has an implementation: one that is asked for and that nobody
// knows would end a run hours after it began.
func TestEveryKindIsKnown(t *testing.T) {
	for _, k := range schedule.Kinds() {
		if err := attempt(idleNemesis(t, 3), k); errors.Is(err, errNobody) {
			t.Errorf("%s has no implementation", k)
		}
	}
}

// attempt begins a fault where there is nothing to strike: what does not get as far as
// its implementation says so, and the rest may fail there in any way.
func attempt(n *nemesis, k schedule.Kind) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("there is nothing to strike")
		}
	}()
	a, err := n.begin(context.Background(), schedule.Fault{Kind: k, Amount: 7})
	if err == nil && a.mend != nil {
		_ = a.mend()
	}
	return err
}

// A kind that nobody knows is told from one that fails.
func TestUnknownKind(t *testing.T) {
	if err := attempt(idleNemesis(t, 3), "earthquake"); !errors.Is(err, errNobody) {
		t.Errorf("got %v", err)
	}
}

// What a fault of links cuts leaves a majority that reaches itself, of three nodes and
// of five, and who is in none is unhealthy.
func TestCutsLeaveAMajority(t *testing.T) {
	for _, nodes := range []int{3, 5} {
		for _, k := range []schedule.Kind{schedule.CutOff, schedule.Alone, schedule.Bridge, schedule.Deaf, schedule.Mute} {
			for victim := range nodes {
				n := idleNemesis(t, nodes)
				a, err := n.begin(context.Background(), schedule.Fault{Kind: k, Victim: victim, Amount: 3})
				if err != nil {
					t.Fatal(err)
				}
				unhealthy := map[int]bool{}
				for _, i := range a.unhealthy {
					unhealthy[i] = true
				}
				if want := nodes / 2; (k == schedule.CutOff || k == schedule.Bridge) && len(unhealthy) != want || len(unhealthy) > want {
					t.Errorf("%s of %d nodes makes %v unhealthy, want a smaller half", k, nodes, a.unhealthy)
				}
				cuts := 0
				for i := range nodes {
					for j := range nodes {
						cut := n.cast.fabric.Cut(addressNode(i), addressNode(j))
						if cut {
							cuts++
						}
						if cut && !unhealthy[i] && !unhealthy[j] {
							t.Errorf("%s of %d nodes: who is healthy, %d and %d, do not reach each other", k, nodes, i, j)
						}
					}
				}
				if cuts == 0 {
					t.Errorf("%s cuts nothing", k)
				}
				if a.mend(); n.cast.fabric.Cut(addressNode(victim), addressNode((victim+1)%nodes)) {
					t.Errorf("%s is not mended", k)
				}
			}
		}
	}
}

// A fault of which nothing can be seen is not counted as one that struck.
func TestWitness(t *testing.T) {
	n := idleNemesis(t, 3)
	a, err := n.begin(context.Background(), schedule.Fault{Kind: schedule.Kill})
	if err != nil {
		t.Fatal(err)
	}
	if n.witness(a.fault, a.evidence()); len(n.idle()) != 1 {
		t.Errorf("no node ran, and yet a kill struck: %q", a.evidence())
	}
	n = idleNemesis(t, 3)
	if a, err = n.begin(context.Background(), schedule.Fault{Kind: schedule.CutOff}); err != nil {
		t.Fatal(err)
	}
	if got := a.evidence(); got != "" {
		t.Errorf("no packet, and yet %q", got)
	}
}

// What is waited for says why it was not so, and not that the last look was cut short.
func TestAwaitSaysWhy(t *testing.T) {
	c := &cast{}
	looks := 0
	err := c.await(t.Context(), 450*time.Millisecond, func(ctx context.Context) error {
		if looks++; looks == 1 {
			return errNobody
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, errNobody) || looks != 2 {
		t.Errorf("%d looks: %v", looks, err)
	}
}
