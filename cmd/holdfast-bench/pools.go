package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Nodes write files ahead of their use while they have nothing else to do, and
// keep those that they have emptied: files that are called so, in the
// directories of the bodies and of Raft's log.
const (
	poolOfBodies = "data/spool/*.free"
	poolOfLog    = "data/raft/log/*.free"
	// segmentBytes is the length of such a file when it is whole.
	segmentBytes = 64 << 20
)

// pools is how many octets there are written ahead: at the node with the least of
// them, at the one with the most, and at all of them.
func (s *scene) pools(patterns ...string) (least, most, all int64) {
	for i, n := range s.fleet.Nodes {
		var octets int64
		for _, pattern := range patterns {
			names, err := filepath.Glob(filepath.Join(n.Dir, pattern))
			if err != nil {
				panic(err) // of the pattern
			}
			for _, name := range names {
				if info, err := os.Stat(name); err == nil { // it may be a segment by now
					octets += info.Size()
				}
			}
		}
		if i == 0 || octets < least {
			least = octets
		}
		most = max(most, octets)
		all += octets
	}
	return least, most, all
}

const (
	// settleTime bounds how long the nodes may take to have nothing to write
	// ahead any more, and settleLooks is how often in a row it must look so.
	settleTime  = time.Minute
	settleLooks = 30
)

// settle waits until the nodes have written ahead what they want to: the state of
// those that have had nothing to do for a while.
func (s *scene) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, fmt.Errorf("not within %v", settleTime))
	defer cancel()
	var last [3]int64
	same := 0
	return s.fleet.Until(ctx, "the nodes to have written ahead what they want to", func(context.Context) error {
		least, most, all := s.pools(poolOfBodies, poolOfLog)
		if now := [3]int64{least, most, all}; now != last {
			last, same = now, 0
		}
		if same++; same < settleLooks {
			return fmt.Errorf("%d to %d octets are", least, most)
		}
		return nil
	})
}
