package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage may lie about before the collector runs again. A node with an
// empty queue has little that lives, and accepting mail makes much garbage: at Go's
// own 100 % it would collect many times a second. A node with a million messages
// queued must not hold twice what lives.
const (
	// garbageBytesMin may always be there.
	garbageBytesMin = 64 << 20
	// garbagePercentMin of what lives may always be there, too.
	garbagePercentMin = 60
	// garbagePercentMax bounds how far the heap can run ahead of a look.
	garbagePercentMax = 400
	// garbageLookEvery is how often the policy looks at what lives.
	garbageLookEvery = 250 * time.Millisecond
	// garbageSlackPercent: less of a change is none, since a change stops the
	// process for a moment.
	garbageSlackPercent = 10
)

// garbagePercent is for debug.SetGCPercent where so many octets live.
func garbagePercent(live uint64) int {
	if live == 0 {
		return garbagePercentMax
	}
	return int(min(max(garbageBytesMin*100/live, garbagePercentMin), garbagePercentMax))
}

// collectGarbage adapts the collector's pace to what lives, until ctx ends. Who
// starts the process with GOGC set has decided otherwise.
func collectGarbage(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set := 0
	tick := time.NewTicker(garbageLookEvery)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		if sample[0].Value.Kind() != metrics.KindUint64 {
			return // a runtime that does not tell
		}
		if percent := garbagePercent(sample[0].Value.Uint64()); differs(percent, set) {
			debug.SetGCPercent(percent)
			set = percent
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// differs reports whether a change from one percentage to the other is worth it.
func differs(percent, set int) bool {
	return max(percent-set, set-percent)*100 > set*garbageSlackPercent
}
