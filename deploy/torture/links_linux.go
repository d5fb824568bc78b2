package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/torture/fabric"
)

// A way is what a fault makes of one direction.
type way struct {
	from, to netip.Addr
	is       fabric.Way
}

// oneWay cuts what goes from nodes to one.
func oneWay(from []int, to int) []way {
	var ways []way
	for _, i := range from {
		ways = append(ways, way{addressNode(i), addressNode(to), fabric.Way{Cut: true}})
	}
	return ways
}

func reverse(ways []way) []way {
	turned := make([]way, len(ways))
	for i, w := range ways {
		turned[i] = way{w.to, w.from, w.is}
	}
	return turned
}

// apart cuts two sets of nodes off from each other.
func apart(some, rest []int) (ways []way) {
	for _, i := range some {
		ways = append(ways, pairs(i, rest)...)
	}
	return ways
}

// pairs cuts a node off from others, in both directions.
func pairs(i int, from []int) []way {
	in := oneWay(from, i)
	return append(in, reverse(in)...)
}

// outside is all directions between a node and who is no node.
func outside(i int, is fabric.Way) []way {
	var ways []way
	for _, a := range []netip.Addr{addressSender, addressPrimary, addressReports} {
		ways = append(ways, way{addressNode(i), a, is}, way{a, addressNode(i), is})
	}
	return ways
}

// all is all directions between nodes.
func (n *nemesis) all(is fabric.Way) []way {
	var ways []way
	for _, i := range n.everybody() {
		for _, j := range n.others(i) {
			ways = append(ways, way{addressNode(i), addressNode(j), is})
		}
	}
	return ways
}

// cut makes ways what they say, until an act is mended.
func (n *nemesis) cut(a *act, ways []way) {
	a.seen = n.struck(ways)
	n.set(ways)
	a.mend = func() error { n.unset(ways); return nil }
}

// struck returns what counts the packets that ways did something to since now.
func (n *nemesis) struck(ways []way) func() string {
	count := func() (all int64) {
		for _, w := range ways {
			all += n.cast.fabric.Struck(w.from, w.to)
		}
		return all
	}
	before := count()
	return func() string {
		if more := count() - before; more > 0 {
			return fmt.Sprintf("%d packets", more)
		}
		return ""
	}
}

func (n *nemesis) set(ways []way) {
	for _, w := range ways {
		n.cast.fabric.Set(w.from, w.to, w.is)
	}
}

func (n *nemesis) unset(ways []way) {
	for _, w := range ways {
		n.cast.fabric.Set(w.from, w.to, fabric.Way{})
	}
}

// flap cuts a node off and lets it back, several times a second.
func (n *nemesis) flap(a *act, r *rand.Rand, i int) {
	ways := pairs(i, n.others(i))
	a.seen = n.struck(ways)
	a.mend = meanwhile(func(ctx context.Context) {
		n.set(ways)
		wait(ctx, time.Duration(50+r.IntN(450))*time.Millisecond)
		n.unset(ways)
		wait(ctx, time.Duration(50+r.IntN(450))*time.Millisecond)
	}, func() { n.unset(ways) })
}

// rotateTime is how long each node is alone in a rotating partition: longer than
// an election takes.
const rotateTime = 4 * time.Second

// rotate cuts off one node after the other.
func (n *nemesis) rotate(a *act, first int) {
	i := first
	a.seen = n.struck(n.all(fabric.Way{}))
	a.mend = meanwhile(func(ctx context.Context) {
		ways := pairs(i, n.others(i))
		n.cast.diary.fail(time.Now(), i)
		n.set(ways)
		wait(ctx, rotateTime)
		n.unset(ways)
		n.cast.diary.heal(i)
		i = (i + 1) % len(n.cast.fleet.Nodes)
	}, func() {})
}

// clog cuts one direction after the other, and then mends one after the other, in
// another order. It begins again when nothing is cut any more.
func (n *nemesis) clog(a *act, r *rand.Rand) {
	ways := n.all(fabric.Way{Cut: true})
	a.seen = n.struck(ways)
	a.mend = meanwhile(func(ctx context.Context) {
		for _, change := range []func([]way){n.set, n.unset} {
			for _, k := range r.Perm(len(ways)) {
				if ctx.Err() != nil {
					return
				}
				change(ways[k : k+1])
				wait(ctx, 600*time.Millisecond)
			}
		}
	}, func() { n.unset(ways) })
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
