package delivery

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm"
)

// TestControlLeaseUnchecked: a node with a message on its way is stopped for
// longer than its lease, and another one delivers the message meanwhile. The first
// one goes on where it was, and does not send the dot.
func TestControlLeaseUnchecked(t *testing.T) {
	trial.Run(t, controls.LeaseUnchecked, func(t *testing.T, on controls.Set) (broken error) {
		p := &deliverytest.Primary{Extensions: extensions}
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, p)
			defer c.stop()
			p.OnDot(func(deliverytest.Received) {})
			var stopped atomic.Bool
			c.fault = func(call string, _ bool, node fsm.NodeName) error {
				if call == "renew" && node == "a" { // a stopped node says nothing
					return errCut
				}
				return nil
			}
			p.SetAnswer(func(stage, _ string) string {
				if stage == deliverytest.Data && stopped.CompareAndSwap(false, true) {
					time.Sleep(100 * time.Second)
				}
				return ""
			})
			c.agent("a", 0, 2, func(config *Config) { config.Controls = on })
			ids := c.acceptN(1)
			until(t, time.Minute, "a has it in hand", stopped.Load)
			c.agent("b", 1, 2, nil)
			until(t, 95*time.Second, "b has delivered it", func() bool { return len(p.Received()) == 1 })
			time.Sleep(10 * time.Minute)
			if n := len(p.Received()); n != 1 {
				broken = fmt.Errorf("%d dots of %s, the second by a node whose lease had ended", n, ids[0])
			}
		})
		return broken
	})
}

// unknownName is a resolver that denies the domain's name for a while.
type unknownName struct {
	Router
	till time.Time
}

func (u unknownName) Route(ctx context.Context, d fsm.Domain) ([]route.Hop, error) {
	if time.Now().Before(u.till) {
		return nil, fmt.Errorf("MX of %s: %w", d.Name, route.ErrNotFound)
	}
	return u.Router.Route(ctx, d)
}

// TestControlUnknownNameBounced: DNS denies the domain's name for some minutes.
// Its mail waits, and is delivered.
func TestControlUnknownNameBounced(t *testing.T) {
	trial.Run(t, controls.UnknownNameBounced, func(t *testing.T, on controls.Set) (broken error) {
		p := &deliverytest.Primary{Extensions: extensions}
		bubbleWith(t, p, nil, func(config *Config) {
			config.Controls, config.Router = on, unknownName{config.Router, time.Now().Add(5 * time.Minute)}
		}, func(c *cluster, a *Agent) {
			ids := c.acceptN(3)
			time.Sleep(20 * time.Minute)
			for _, id := range ids {
				if r := c.message(id).Recipients[0]; r.State != fsm.RecipientDelivered {
					broken = fmt.Errorf("%s is %v: %s", id, r.State, r.Reply)
				}
			}
		})
		return broken
	})
}
