package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm"
)

// TestControlWallClockExpiry: the leader's wall clock is set ten days ahead, and a
// message that has waited for minutes of its five days is still in the queue.
func TestControlWallClockExpiry(t *testing.T) {
	trial.Run(t, controls.WallClockExpiry, func(t *testing.T, on controls.Set) (broken error) {
		synctest.Test(t, func(t *testing.T) {
			q := newQueue(t)
			q.apply(t, fsm.PutDomain{Domain: fsm.Domain{
				Name: domain, Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}},
				Schedule: fsm.Schedule{Lifetime: fsm.Millis((5 * 24 * time.Hour).Milliseconds())},
			}})
			id := q.accept(t, 1)
			began, ahead := time.Now(), time.Duration(0)
			d := New(Config{
				Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 7,
				TickEvery: 30 * time.Second, Controls: on,
				WallClock: func() time.Time {
					if time.Since(began) > 5*time.Minute {
						ahead = 10 * 24 * time.Hour
					}
					return time.Now().Add(ahead)
				},
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			d.Lead(ctx)
			m, ok := q.View().Message(id)
			if !ok || m.State() != fsm.RecipientQueued {
				broken = fmt.Errorf("a message is %v after %s of its five days", m.State(), time.Since(began))
			}
		})
		return broken
	})
}
