package delivery

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
)

// TestPrimaryThatConnectsIsProbed: a primary that comes back and sends mail of its own
// through us has its mail at once, not when the turn to probe it comes round.
func TestPrimaryThatConnectsIsProbed(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	up := false
	bubbleWith(t, p, func(c *cluster) { c.reached = func(fsm.NodeName) bool { return up } }, nil, func(c *cluster, a *Agent) {
		ids := c.acceptN(3)
		until(t, time.Minute, "suspect", func() bool { return c.hop().State != fsm.NextHopUp })
		c.apply("b", fsm.ReportNextHop{Node: "b", Domain: testDomain})
		until(t, time.Minute, "down", func() bool { return c.hop().State == fsm.NextHopDown })
		n := a.Stats().Probes.Load()
		until(t, time.Minute, "a probe", func() bool { return a.Stats().Probes.Load() > n })
		time.Sleep(time.Second) // the next is many seconds away

		n = a.Stats().Probes.Load()
		a.Heard(netip.MustParseAddr("192.0.2.11")) // somebody else
		synctest.Wait()
		if got := a.Stats().Probes.Load(); got != n {
			t.Errorf("%d probes for a stranger", got-n)
		}
		for range 50 { // it is there, and takes nothing yet
			a.Heard(netip.MustParseAddr("::ffff:192.0.2.10"))
			time.Sleep(20 * time.Millisecond)
		}
		if got := a.Stats().Probes.Load() - n; got != 1 {
			t.Errorf("%d probes within a second", got)
		}
		c.mu.Lock()
		up = true
		c.mu.Unlock()
		time.Sleep(heardSpacing)
		a.Heard(netip.MustParseAddr("192.0.2.10"))
		until(t, 500*time.Millisecond, "first mail", func() bool { return len(p.Received()) > 0 })
		c.done(ids, time.Minute)
		a.awaited.mu.Lock()
		if len(a.awaited.at) > 0 || len(a.awaited.of) > 0 {
			t.Errorf("still awaited: %v", a.awaited.of)
		}
		a.awaited.mu.Unlock()
	})
}

// TestRegressionHopsEnd: domains come and go, those that reports go to all the time. What was kept
// for one that has nothing to do any more ends, and begins anew with its next mail.
//
// It holds this defect: each domain that had come and gone left a goroutine behind.
func TestRegressionHopsEnd(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		ids := c.acceptN(3)
		c.done(ids, time.Minute)
		kept := func() int64 {
			synctest.Wait()
			return a.Stats().Hops.Load()
		}
		if time.Sleep(hopLife / 2); kept() != 1 {
			t.Errorf("%d hops", kept())
		}
		if time.Sleep(hopLife); kept() != 0 {
			t.Errorf("%d hops without work", kept())
		}
		more := c.acceptN(3)
		c.done(more, time.Minute)
		c.exactlyOnce(append(ids, more...))
	})
}
