package sim

import (
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// A clock is a host's: its wall clock is wrong, and its oscillator too fast or too
// slow by so many in a thousand. Go's monotonic clock, by which a leader waits, is
// that of the bubble for all nodes: the difference is in what a holder counts by.
type clock struct {
	wrong time.Duration
	drift int
}

func (c clock) now() time.Time { return time.Now().Add(c.wrong) }

func (c clock) boot() time.Duration {
	up := time.Since(time.Time{}.AddDate(1990, 0, 0))
	return up + up/1000*time.Duration(c.drift)
}

// slowRhythm is for worlds where for most of the time nothing happens, farApart their
// configuration.
var slowRhythm = node.Pace{Commit: 4 * time.Second, Tick: 30 * time.Second, Roll: 8 * time.Second, Reconnect: 20 * time.Second}

func farApart(c *config.Config) { c.Latency = config.WAN }
