package schedule

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// A seed is a plan: who repeats it gets the same.
func TestPlanIsItsSeed(t *testing.T) {
	for seed := range uint64(50) {
		a, b := New(seed, 3, 5*time.Minute), New(seed, 3, 5*time.Minute)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: two plans:\n%v\n%v", seed, a, b)
		}
	}
	if reflect.DeepEqual(New(1, 3, time.Minute), New(2, 3, time.Minute)) {
		t.Error("seeds 1 and 2 are one plan")
	}
}

// A longer run begins as the shorter one did.
func TestLongerPlan(t *testing.T) {
	short, long := New(7, 3, 2*time.Minute), New(7, 3, 20*time.Minute)
	if !reflect.DeepEqual(short.Swarm, long.Swarm) || !reflect.DeepEqual(short.Rounds, long.Rounds[:len(short.Rounds)]) {
		t.Errorf("the plans differ:\n%v\n%v", short.Rounds, long.Rounds[:len(short.Rounds)])
	}
}

func TestPlan(t *testing.T) {
	seen := map[Kind]int{}
	leaders, faults, quiet, rounds, together := 0, 0, 0, 0, 0
	for seed := range uint64(200) {
		const length = 10 * time.Minute
		p := New(seed, 3, length)
		if len(p.Swarm) < swarmMin || len(p.Swarm) == len(traits) {
			t.Fatalf("seed %d: a swarm of %d", seed, len(p.Swarm))
		}
		in := map[Kind]bool{}
		for _, k := range p.Swarm {
			in[k] = true
		}
		first := map[Kind]bool{}
		var takes time.Duration
		for _, r := range p.Rounds {
			rounds++
			takes += r.Lasts + r.Rests
			if len(r.Faults) == 0 {
				quiet++
			}
			if len(r.Faults) > 1 {
				together++
				if traitOf(r.Faults[0].Kind).at == traitOf(r.Faults[1].Kind).at {
					t.Fatalf("seed %d: both strike at one place: %v", seed, r)
				}
			}
			for _, f := range r.Faults {
				faults++
				seen[f.Kind]++
				if f.Victim == Leader {
					leaders++
				}
				if f.Victim < Leader || f.Victim > 2 || !in[f.Kind] {
					t.Fatalf("seed %d: %v", seed, f)
				}
				if first[f.Kind] && len(first) < len(p.Swarm) {
					t.Fatalf("seed %d: %s twice before all have come", seed, f.Kind)
				}
				first[f.Kind] = true
				if least := traitOf(f.Kind).min; r.Lasts < least {
					t.Fatalf("seed %d: %v is shorter than %s lasts", seed, r, f.Kind)
				}
				if f.Kind.Alone() && len(r.Faults) > 1 {
					t.Fatalf("seed %d: a disk goes while something else is broken: %v", seed, r)
				}
			}
		}
		if takes < length || takes > length+2*time.Minute {
			t.Errorf("seed %d takes %v", seed, takes)
		}
	}
	for _, k := range Kinds() {
		if strings.Contains(string(k), ",") {
			t.Errorf("%q cannot be asked for by -only, which has commas between kinds", k)
		}
		if seen[k] == 0 {
			t.Errorf("%s never comes", k)
		}
	}
	if together*20 < rounds {
		t.Errorf("%d of %d rounds have two faults", together, rounds)
	}
	if quiet*3 < rounds/2 || quiet*3 > rounds || leaders*3 < faults {
		t.Errorf("%d of %d rounds quiet, %d of %d faults hit the leader", quiet, rounds, leaders, faults)
	}
}

func TestOnly(t *testing.T) {
	for _, r := range New(3, 3, time.Minute, Kill).Rounds {
		for _, f := range r.Faults {
			if f.Kind != Kill {
				t.Errorf("asked for %s, got %s", Kill, f.Kind)
			}
		}
	}
}

// Who lists the kinds sees of each what it does, and of no two the same.
func TestDoes(t *testing.T) {
	seen := map[string]Kind{}
	for _, k := range Kinds() {
		does := k.Does()
		if does == "" || len(does) > 100 || strings.ContainsAny(does, "\n\t") {
			t.Errorf("%s does %q, want one line of at most 100 octets", k, does)
		}
		if other, ok := seen[does]; ok {
			t.Errorf("%s and %s: %q", k, other, does)
		}
		seen[does] = k
	}
}
