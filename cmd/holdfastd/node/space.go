package node

import (
	"context"
	"sync/atomic"
	"time"
)

// spaceEvery is how often the free space of the data directory is looked at.
const spaceEvery = 2 * time.Second

// A space watches how much of a disk is free.
type space struct {
	free func() (percent int, err error)
	min  int
	low  atomic.Bool
}

// watch looks until ctx ends. A look that fails changes nothing: the spool will
// say soon enough what is wrong with the disk.
func (s *space) watch(ctx context.Context) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		if percent, err := s.free(); err == nil {
			s.low.Store(percent < s.min)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
