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

// The kinds of faults; Kind.Does says what each does.
const (
	Kill    Kind = "kill"
	KillTwo Kind = "kill two"
	KillAll Kind = "kill all"
	Pause   Kind = "pause"
	Freeze  Kind = "pause past the lease"
	CutOff  Kind = "cut off"
	Alone   Kind = "cut off from everyone"
	Rotate  Kind = "rotating partition"
	Bridge  Kind = "bridge"
	Deaf    Kind = "deaf"
	Mute    Kind = "mute"
	Flap    Kind = "flapping"
	Loss    Kind = "loss"
	Latency Kind = "slow links"
	NoWay   Kind = "no primary"
	Clog    Kind = "swizzle"
	Drought Kind = "descriptors"

	Power     Kind = "power loss"
	PowerAll  Kind = "power loss of all"
	SyncError Kind = "failing fsync"
	SyncLie   Kind = "lying fsync"
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
	does     string // in one line
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
	{kind: Kill, does: "one node is killed", at: processes, min: second, max: 6 * second},
	{kind: KillTwo, does: "two nodes are killed at once", at: processes, min: second, max: 5 * second},
	{kind: KillAll, does: "all nodes are killed at once", at: processes, min: second, max: 4 * second},
	{kind: Pause, does: "one node is stopped, for longer than an election takes", at: processes, min: 3 * second, max: 6 * second},
	{kind: Freeze, does: "one node is stopped, and wakes with leases that have ended", at: processes, min: 7 * second, max: 12 * second},
	{kind: CutOff, does: "one node, of five two together, is cut off from the others, not from senders and primary", at: links, min: 4 * second, max: 14 * second, pairs: true},
	{kind: Alone, does: "one node is cut off from everyone but the administrator", at: links, min: 4 * second, max: 14 * second, pairs: true},
	{kind: Rotate, does: "one node after the other is cut off from the others", at: links, min: 10 * second, max: 20 * second, pairs: true},
	{kind: Bridge, does: "the nodes are two halves that do not see each other, and one node that sees both", at: links, min: 6 * second, max: 15 * second, pairs: true},
	{kind: Deaf, does: "one node hears nothing of the others, who hear it, for as long as a run can afford", at: links, min: 35 * second, max: 42 * second},
	{kind: Mute, does: "one node is not heard by the others, whom it hears, for as long", at: links, min: 35 * second, max: 42 * second},
	{kind: Flap, does: "one node is cut off from the others and let back, several times a second", at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: Loss, does: "a share of all packets between nodes is lost: of TCP, of UDP or of both", at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: Latency, does: "all packets between nodes are late, and some overtake others and come twice", at: links, min: 8 * second, max: 15 * second, pairs: true},
	{kind: NoWay, does: "one node alone cannot reach the primary", at: links, min: 5 * second, max: 20 * second, pairs: true},
	{kind: Clog, does: "ways between nodes are cut one by one, and mended one by one in another order", at: links, min: 8 * second, max: 15 * second},
	{kind: Drought, does: "one node may open no more files before it has closed some", at: processes, min: 5 * second, max: 10 * second},

	{kind: Power, does: "the disk of one node loses its power, and what no fsync covered", at: storage, min: second, max: 4 * second, needs: []Need{Loop}},
	{kind: PowerAll, does: "the disks of all nodes lose their power at once", at: storage, min: second, max: 4 * second, needs: []Need{Loop}},
	{kind: SyncError, does: "an early fsync of each thread of one node fails (EIO)", at: storage, min: 3 * second, max: 8 * second, needs: []Need{Strace}},
	{kind: SyncLie, does: "the fsyncs of one node do nothing and do not say so; then its disk loses its power", at: storage, min: 4 * second, max: 8 * second, needs: []Need{Loop, Strace}, alone: true},
	{kind: SlowDisk, does: "each fsync of one node takes up to a second longer", at: storage, min: 6 * second, max: 12 * second, needs: []Need{Strace}},
	{kind: HungDisk, does: "each fsync of one node hangs", at: storage, min: 8 * second, max: 14 * second, needs: []Need{Strace}},
	{kind: NoSpace, does: "the disk of one node is full, to the last block, and so is what the node gives back", at: storage, min: 4 * second, max: 10 * second, needs: []Need{Loop}},
	{kind: ReadOnly, does: "the kernel finds an error in the file system of one node, which is read-only from then on", at: storage, min: 4 * second, max: 8 * second, needs: []Need{Loop}},
	{kind: FlipBody, does: "one node is killed, and a bit flips in a file of bodies", at: storage, min: second, max: 3 * second, alone: true},
	{kind: FlipLog, does: "one node is killed, and a bit flips in a file of Raft's log", at: storage, min: second, max: 3 * second, alone: true},
	{kind: FlipTerm, does: "one node is killed, and a bit flips in raft.db, which has its term and vote", at: storage, min: second, max: 3 * second, alone: true},
	{kind: Wipe, does: "one node is killed, and loses all that it had", at: storage, min: second, max: 3 * second, alone: true},
	{kind: RollBack, does: "one node gets its disk back as it was some seconds ago", at: storage, min: 5 * second, max: 10 * second, needs: []Need{Loop}, alone: true},

	{kind: PrimaryDown, does: "the primary is down", at: primary, min: 5 * second, max: 15 * second, pairs: true},
	{kind: PrimarySlow, does: "the primary lets each final dot wait for its reply", at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryDrops, does: "the primary breaks connections off, three in ten, at one stage of the conversation", at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryMute, does: "the primary takes messages, and one time in ten does not say so", at: primary, min: 8 * second, max: 15 * second, pairs: true},
	{kind: PrimaryPuts, does: "the primary answers three in ten commands of a sort with a 4yz", at: primary, min: 8 * second, max: 15 * second, pairs: true},
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

// Does says in one line what a kind does, those of the primary to the one that the
// harness plays: a real one is made to do much the same (docs/guarantees.md).
func (k Kind) Does() string { return traitOf(k).does }

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
