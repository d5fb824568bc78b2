package delivery

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
)

// The next hop returns, and one node alone reaches it: the first mail moves
// within 30 s, whichever node it is and whenever it happens.
func TestReturnIsSeenWithin30Seconds(t *testing.T) {
	names := []fsm.NodeName{"a", "b", "c"}
	for only := range names {
		for _, offset := range []time.Duration{0, 5 * time.Second, 11 * time.Second, 17 * time.Second, 23 * time.Second} {
			for _, jitter := range []float64{0, 0.5, 0.999} {
				t.Run(fmt.Sprintf("%s after %v, %v", names[only], offset, jitter), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := &deliverytest.Primary{Extensions: extensions}
						c := newCluster(t, p)
						defer c.stop()
						up := false
						c.reached = func(n fsm.NodeName) bool { return up && n == names[only] }
						var agents []*Agent
						for rank, name := range names {
							var mu sync.Mutex
							turn := 0
							agents = append(agents, c.agent(name, rank, 3, func(config *Config) {
								config.Random = func() float64 { // the worst: now early, now late
									mu.Lock()
									defer mu.Unlock()
									turn++
									if turn%2 == 0 {
										return 1 - jitter
									}
									return jitter
								}
							}))
						}
						ids := c.acceptN(20)
						until(t, time.Minute, "down", func() bool { return c.hop().State == fsm.NextHopDown })
						time.Sleep(2*time.Minute + offset)
						before := agents[0].Stats().Probes.Load() + agents[1].Stats().Probes.Load() + agents[2].Stats().Probes.Load()
						if before < 13 || before > 20 { // one about every 8 s
							t.Errorf("%d probes in two minutes", before)
						}
						c.mu.Lock()
						up = true
						c.mu.Unlock()
						until(t, 30*time.Second, "first mail", func() bool { return len(p.Received()) > 0 })
						c.done(ids, time.Minute)
						c.exactlyOnce(ids)
						for _, a := range agents {
							shutdown(t, a, time.Minute)
						}
					})
				})
			}
		}
	}
}

func TestFlushProbesAtOnce(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, p)
		defer c.stop()
		up := false
		c.reached = func(fsm.NodeName) bool { return up }
		a, b := c.agent("a", 0, 3, nil), c.agent("b", 1, 3, nil)
		ids := c.acceptN(3)
		until(t, time.Minute, "down", func() bool { return c.hop().State == fsm.NextHopDown })
		until(t, time.Minute, "a probe", func() bool { return a.Stats().Probes.Load() > 0 })
		time.Sleep(time.Second)
		c.mu.Lock()
		up = true
		c.mu.Unlock()
		c.apply("operator", fsm.FlushDomain{Name: testDomain})
		c.done(ids, time.Second)
		shutdown(t, a, time.Minute)
		shutdown(t, b, time.Minute)
	})
}

// A probe that hangs does not put off the next.
func TestProbeThatHangs(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: at(deliverytest.Banner, deliverytest.Hang)}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, p)
		defer c.stop()
		a := c.agent("a", 0, 3, nil)
		c.apply("b", fsm.ReportNextHop{Node: "b", Domain: testDomain})
		c.apply("c", fsm.ReportNextHop{Node: "c", Domain: testDomain})
		ids := c.acceptN(1)
		time.Sleep(2 * time.Minute)
		p.SetAnswer(nil)
		c.done(ids, 30*time.Second)
		shutdown(t, a, time.Minute)
	})
}

// A node that is cut off from a next hop that others reach stays quiet: its
// reports and theirs must not chase each other.
func TestCutOffNodesDoNotFlood(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, _ string) string {
		if stage == deliverytest.Data {
			time.Sleep(time.Second)
		}
		return ""
	}}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, p)
		defer c.stop()
		c.reached = func(n fsm.NodeName) bool { return n == "c" }
		agents := []*Agent{c.agent("a", 0, 3, nil), c.agent("b", 1, 3, nil), c.agent("c", 2, 3, nil)}
		ids := c.acceptN(1500)
		c.done(ids, 15*time.Minute)
		c.exactlyOnce(ids)
		c.mu.Lock()
		n := len(c.hops)
		c.mu.Unlock()
		if n > 150 {
			t.Errorf("%d reports of the next hop", n)
		}
		for _, a := range agents {
			shutdown(t, a, time.Minute)
		}
	})
}

// Three nodes take turns: one probe every 8 s, not three every 24 s.
func TestProbesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, &deliverytest.Primary{})
		defer c.stop()
		var mu sync.Mutex
		var probes []time.Time
		c.reached = func(fsm.NodeName) bool {
			mu.Lock()
			defer mu.Unlock()
			probes = append(probes, time.Now())
			return false
		}
		for rank, name := range []fsm.NodeName{"a", "b", "c"} {
			c.agent(name, rank, 3, nil)
		}
		c.acceptN(1)
		until(t, time.Minute, "down", func() bool { return c.hop().State == fsm.NextHopDown })
		time.Sleep(time.Second)
		mu.Lock()
		probes = nil
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		for i := range probes[1:] {
			if gap := probes[i+1].Sub(probes[i]); gap < 7*time.Second || gap > 9*time.Second {
				t.Errorf("probe %d comes %v after the one before", i+1, gap)
			}
		}
		if len(probes) < 36 {
			t.Errorf("%d probes in five minutes", len(probes))
		}
	})
}
