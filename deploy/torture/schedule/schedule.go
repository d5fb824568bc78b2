// Package schedule decides, from a seed and nothing else, what breaks in a torture
// run, when, and for how long. It does nothing: who runs the nodes does.
//
// A seed chooses a swarm, a part of all kinds of faults, so that runs differ in
// what they combine and not only in when (Groce and others, Swarm Testing, 2012).
// Each kind of a swarm comes before any comes twice. A quarter of the rounds are
// quiet.
package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A Kind is a kind of fault.
type Kind string

// The kinds of faults. Where nothing else is said one node is the victim, of three
// nodes and of five.
const (
	Kill    Kind = "kill"
	KillTwo Kind = "kill two"
	KillAll Kind = "kill all"
	Pause   Kind = "pause"                 // beyond the election timeout
	Freeze  Kind = "pause past the lease"  // so that it wakes with leases that have ended
	CutOff  Kind = "cut off"               // from the other nodes, not from senders and primary; of five, two together
	Alone   Kind = "cut off from everyone" // but the administrator
	Rotate  Kind = "rotating partition"
	Bridge  Kind = "bridge"      // the victim sees the others, of whom each half sees itself alone
	Deaf    Kind = "deaf"        // it sends and hears nothing, for as long as a run can afford
	Mute    Kind = "mute"        // the other way round
	Flap    Kind = "flapping"    // all its ways, several times a second
	Loss    Kind = "loss"        // of a share of all packets between nodes
	Latency Kind = "slow links"  // between all nodes, with packets that overtake and come twice
	NoWay   Kind = "no primary"  // the victim alone cannot reach it
	Clog    Kind = "swizzle"     // ways are cut one by one, and mended in another order
	Drought Kind = "descriptors" // it may open no more files

	Power     Kind = "power loss"
	PowerAll  Kind = "power loss of all"
	SyncError Kind = "failing fsync"
	SyncLie   Kind = "lying fsync" // and then power loss
	SlowDisk  Kind = "slow disk"
	HungDisk  Kind = "hung disk"
	NoSpace   Kind = "full disk"
	ReadOnly  Kind = "read-only disk"
	FlipBody  Kind = "bit flip in a body"
	FlipLog   Kind = "bit flip in the log"
	FlipTerm  Kind = "bit flip in term and vote"
	Wipe      Kind = "wiped data directory"
	RollBack  Kind = "data directory of long ago"

	PrimaryDown  Kind = "primary down"
	PrimarySlow  Kind = "primary slow"
	PrimaryDrops Kind = "primary drops connections"
	PrimaryMute  Kind = "primary takes and says nothing"
	PrimaryPuts  Kind = "primary puts off"
)

// A Need is what a kind of fault needs of the machine.
type Need string

// The needs.
const (
	Loop   Need = "ext4 on loop devices"
	Strace Need = "strace"
)

// All needs root, Linux and TUN, without which there is no run at all.

// A place is what a fault strikes at. Faults that come together strike at different
// places: at one and the same, the second would undo what the first did.
type place string

const (
	processes place = "processes"
	links     place = "links"
	storage   place = "storage"
	primary   place = "primary"
)

// A trait is what is known of a kind.
type trait struct {
	kind     Kind
	at       place
	min, max time.Duration // how long it lasts
	needs    []Need
	// alone: it takes a disk for good, so that nothing else may be broken, and
	// nothing breaks before all copies are there again.
	alone bool
	// pairs: it does not stop the nodes, so that another fault can come with it.
	pairs bool
}

const second = time.Second

var traits = []trait{
	{kind: Kill, at: processes, min: second, max: 6 * second},
	{kind: KillTwo, at: processes, min: second, max: 5 * second},
	{kind: KillAll, at: processes, min: second, max: 4 * second},
	{kind: Pause, at: processes, min: 3 * second, max: 6 * second},
	{kind: Freeze, at: processes, min: 7 * second, max: 12 * second},
	{kind: CutOff, at: links, min: 4 * second, max: 14 * second, pairs: true},
	{kind: Alone, at: links, min: 4 * second, max: 14 * second, pairs: true},
	{kind: Rotate, at: links, min: 10 * second, max: 20 * second, pairs: true},
	{kind: Bridge, at: links, min: 6 * second, max: 15 * second, pairs: true},
	{kind: Deaf, at: links, min: 35 * second, max: 42 * second},
	{kind: Mute, at: links, min: 35 * second, max: 42 * second},
	{kind: Flap, at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: Loss, at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: Latency, at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: NoWay, at: links, min: 5 * second, max: 20 * second, pairs: true},
	{kind: Clog, at: links, min: 8 * second, max: 15 * second},
	{kind: Drought, at: processes, min: 5 * second, max: 10 * second},

	{kind: Power, at: storage, min: second, max: 4 * second, needs: []Need{Loop}},
	{kind: PowerAll, at: storage, min: second, max: 4 * second, needs: []Need{Loop}},
	{kind: SyncError, at: storage, min: 3 * second, max: 8 * second, needs: []Need{Strace}},
	{kind: SyncLie, at: storage, min: 4 * second, max: 8 * second, needs: []Need{Loop, Strace}, alone: true},
	{kind: SlowDisk, at: storage, min: 6 * second, max: 12 * second, needs: []Need{Strace}},
	{kind: HungDisk, at: storage, min: 8 * second, max: 14 * second, needs: []Need{Strace}},
	{kind: NoSpace, at: storage, min: 4 * second, max: 10 * second, needs: []Need{Loop}},
	{kind: ReadOnly, at: storage, min: 4 * second, max: 8 * second, needs: []Need{Loop}},
	{kind: FlipBody, at: storage, min: second, max: 3 * second, alone: true},
	{kind: FlipLog, at: storage, min: second, max: 3 * second, alone: true},
	{kind: FlipTerm, at: storage, min: second, max: 3 * second, alone: true},
	{kind: Wipe, at: storage, min: second, max: 3 * second, alone: true},
	{kind: RollBack, at: storage, min: 5 * second, max: 10 * second, needs: []Need{Loop}, alone: true},

	{kind: PrimaryDown, at: primary, min: 5 * second, max: 15 * second, pairs: true},
	{kind: PrimarySlow, at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryDrops, at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryMute, at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryPuts, at: primary, min: 8 * second, max: 15 * second, pairs: true},
}

func traitOf(k Kind) trait {
	for _, t := range traits {
		if t.kind == k {
			return t
		}
	}
	panic("no such kind of fault: " + string(k))
}

// Kinds lists all kinds.
func Kinds() []Kind {
	var all []Kind
	for _, t := range traits {
		all = append(all, t.kind)
	}
	return all
}

// Known reports whether there is such a kind.
func (k Kind) Known() bool { return slices.Contains(Kinds(), k) }

// Needs returns what a kind needs.
func (k Kind) Needs() []Need { return traitOf(k).needs }

// Alone reports whether a kind takes a disk for good.
func (k Kind) Alone() bool { return traitOf(k).alone }

// Leader, as a victim, is whoever leads when the fault begins.
const Leader = -1

// A Fault is one fault. Amount makes of a kind what is left to chance: a rate, a
// bit, a second victim.
type Fault struct {
	Kind   Kind
	Victim int // from 0, or Leader
	Amount uint32
}

func (f Fault) String() string {
	who := "leader"
	if f.Victim != Leader {
		who = fmt.Sprintf("node-%d", f.Victim+1)
	}
	return fmt.Sprintf("%s (%s)", f.Kind, who)
}

// A Round is faults that begin together, last, and are mended together, and a rest; or
// a rest alone.
type Round struct {
	Faults       []Fault
	Lasts, Rests time.Duration
}

func (r Round) String() string {
	if len(r.Faults) == 0 {
		return fmt.Sprintf("quiet for %v", r.Rests)
	}
	var names []string
	for _, f := range r.Faults {
		names = append(names, f.String())
	}
	return fmt.Sprintf("%s for %v, rest %v", strings.Join(names, " with "), r.Lasts, r.Rests)
}

// A Plan is all that breaks in a run.
type Plan struct {
	Swarm  []Kind // in the order in which they come first
	Rounds []Round
}

// swarmMin is the fewest kinds of a swarm.
const swarmMin = 8

// New makes the plan of a run of nodes that lasts about so long. Of only, when it
// is not empty, the swarm consists.
func New(seed uint64, nodes int, length time.Duration, only ...Kind) Plan {
	r := rand.New(rand.NewPCG(seed, 0x746f7274757265))
	var p Plan
	kinds := Kinds()
	r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	size := max(swarmMin, len(kinds)/2+r.IntN(len(kinds)/4+1))
	p.Swarm = kinds[:size]
	if len(only) > 0 {
		p.Swarm = slices.Clone(only)
	}
	var bag []Kind
	for at := time.Duration(0); at < length; {
		if r.IntN(4) == 0 && len(p.Rounds) > 0 {
			quiet := Round{Rests: between(r, 3*second, 10*second)}
			p.Rounds = append(p.Rounds, quiet)
			at += quiet.Rests
			continue
		}
		if len(bag) == 0 {
			bag = slices.Clone(p.Swarm)
			if len(p.Rounds) > 0 {
				r.Shuffle(len(bag), func(i, j int) { bag[i], bag[j] = bag[j], bag[i] })
			}
		}
		t := traitOf(bag[0])
		bag = bag[1:]
		round := Round{Faults: []Fault{draw(r, t.kind, nodes)}, Lasts: between(r, t.min, t.max), Rests: between(r, second, 7*second)}
		if t.pairs && r.IntN(3) == 0 {
			if i := slices.IndexFunc(bag, func(k Kind) bool { return !traitOf(k).alone && traitOf(k).at != t.at }); i >= 0 {
				round.Faults = append(round.Faults, draw(r, bag[i], nodes))
				round.Lasts = max(round.Lasts, traitOf(bag[i]).min) // or the second could not strike
				bag = slices.Delete(bag, i, i+1)
			}
		}
		p.Rounds = append(p.Rounds, round)
		at += round.Lasts + round.Rests
	}
	return p
}

// draw chooses the victim: the leader more often than its share.
func draw(r *rand.Rand, k Kind, nodes int) Fault {
	f := Fault{Kind: k, Victim: r.IntN(nodes), Amount: r.Uint32()}
	if r.IntN(2) == 0 {
		f.Victim = Leader
	}
	return f
}

func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return (from + time.Duration(r.Int64N(int64(to-from)+1))).Round(100 * time.Millisecond)
}
