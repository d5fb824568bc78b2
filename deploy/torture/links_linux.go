package main

import (
	"context"
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
func all(is fabric.Way) []way {
	var ways []way
	for _, i := range everybody() {
		for _, j := range others(i) {
			ways = append(ways, way{addressNode(i), addressNode(j), is})
		}
	}
	return ways
}

// cut makes ways what they say, until the mend that it returns.
func (n *nemesis) cut(ways []way) func() error {
	n.set(ways)
	return func() error { n.whole(ways); return nil }
}

func (n *nemesis) set(ways []way) {
	for _, w := range ways {
		n.cast.fabric.Set(w.from, w.to, w.is)
	}
}

func (n *nemesis) whole(ways []way) {
	for _, w := range ways {
		n.cast.fabric.Set(w.from, w.to, fabric.Way{})
	}
}

// flap cuts a node off and lets it back, several times a second.
func (n *nemesis) flap(r *rand.Rand, i int) func() error {
	ways := pairs(i, others(i))
	return meanwhile(func(ctx context.Context) {
		n.set(ways)
		wait(ctx, time.Duration(50+r.IntN(450))*time.Millisecond)
		n.whole(ways)
		wait(ctx, time.Duration(50+r.IntN(450))*time.Millisecond)
	}, func() { n.whole(ways) })
}

// rotateTime is how long each node is alone in a rotating partition: longer than
// an election takes.
const rotateTime = 4 * time.Second

// rotate cuts off one node after the other.
func (n *nemesis) rotate(first int) func() error {
	i := first
	return meanwhile(func(ctx context.Context) {
		ways := pairs(i, others(i))
		n.set(ways)
		wait(ctx, rotateTime)
		n.whole(ways)
		i = (i + 1) % nodesMax
	}, func() {})
}

// clog cuts one direction after the other, and then mends one after the other, in
// another order. It begins again when all are whole.
func (n *nemesis) clog(r *rand.Rand) func() error {
	ways := all(fabric.Way{Cut: true})
	return meanwhile(func(ctx context.Context) {
		for _, change := range []func([]way){n.set, n.whole} {
			for _, k := range r.Perm(len(ways)) {
				if ctx.Err() != nil {
					return
				}
				change(ways[k : k+1])
				wait(ctx, 600*time.Millisecond)
			}
		}
	}, func() { n.whole(ways) })
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
