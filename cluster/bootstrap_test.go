package cluster

import "testing"

// seeing returns members that are alive, empty, and see exactly each other.
func seeing(names ...string) []Sighting {
	var all []Sighting
	for _, n := range names {
		all = append(all, Sighting{Name: n, Incarnation: "1", Address: n + ":1", Alive: true})
	}
	for i := range all {
		all[i].Sees = SightingsDigest(all)
	}
	return all
}

func TestBootstrapIsFoundedByTheLowestNameOnly(t *testing.T) {
	for _, self := range []string{"a", "b", "c"} {
		founders := DecideBootstrap(self, 3, seeing("c", "a", "b"))
		if got, want := founders != nil, self == "a"; got != want {
			t.Errorf("%s founds the cluster: %v, want %v", self, got, want)
		}
		if founders != nil && len(founders) != 3 {
			t.Errorf("founded with %d members, want 3", len(founders))
		}
	}
}

func TestBootstrapIsRefused(t *testing.T) {
	change := func(f func(all []Sighting) []Sighting) []Sighting { return f(seeing("a", "b", "c")) }
	for name, seen := range map[string][]Sighting{
		"alone":            seeing("a"),
		"one is missing":   seeing("a", "b"),
		"one too many":     seeing("a", "b", "c", "d"),
		"one has state":    change(func(all []Sighting) []Sighting { all[2].HasState = true; return all }),
		"we have state":    change(func(all []Sighting) []Sighting { all[0].HasState = true; return all }),
		"one is dead":      change(func(all []Sighting) []Sighting { all[1].Alive = false; return all }),
		"one sees others":  change(func(all []Sighting) []Sighting { all[1].Sees = SightingsDigest(seeing("b", "c")); return all }),
		"one says nothing": change(func(all []Sighting) []Sighting { all[1].Sees = ""; return all }),
		// A dead member of an existing cluster is as good a reason as a live one.
		"a dead one had state": change(func(all []Sighting) []Sighting {
			return append(all, Sighting{Name: "d", Incarnation: "1", HasState: true})
		}),
		"two of one name": seeing("a", "a", "b"),
	} {
		if founders := DecideBootstrap("a", 3, seen); founders != nil {
			t.Errorf("%s: founded a cluster with %v", name, founders)
		}
	}
}

func TestBootstrapExpectZeroNeverFounds(t *testing.T) {
	if founders := DecideBootstrap("a", 0, nil); founders != nil {
		t.Errorf("founded with %v", founders)
	}
}
