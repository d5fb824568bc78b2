package dispatch

import (
	"context"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
)

// wallTickMax is what log time advances by at most in one Tick.
const wallTickMax = time.Minute

// followWallClock advances log time by as much as the wall clock has jumped since
// last, and returns what it says now. It is the control WallClockExpiry, and is in
// no other build.
func (d *Dispatcher) followWallClock(ctx context.Context, last time.Time) time.Time {
	now := d.config.WallClock()
	if last.IsZero() {
		return now
	}
	for left := now.Sub(last) - lookEvery; left > 0; left -= wallTickMax {
		_, _, _ = d.config.Queue.Propose(ctx, fsm.Tick{Elapsed: fsm.Millis(min(left, wallTickMax).Milliseconds())})
	}
	return now
}
