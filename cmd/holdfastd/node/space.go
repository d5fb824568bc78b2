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
	low  atomic.Bool // less than min is free: no mail is accepted here
	full atomic.Bool // less than half of min: no body is taken from other nodes
}

// Low and Full are as cluster.Space wants them.
func (s *space) Low() bool  { return s.low.Load() }
func (s *space) Full() bool { return s.full.Load() }

// ample reports whether there is so much room that files may be written which
// are not needed yet: twice what mail is refused at.
func (s *space) ample() bool {
	percent, err := s.free()
	return err == nil && percent >= 2*s.min
}

// watch looks until ctx ends. A look that fails changes nothing: the spool will
// say soon enough what is wrong with the disk.
func (s *space) watch(ctx context.Context) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		if percent, err := s.free(); err == nil {
			s.low.Store(percent < s.min)
			s.full.Store(percent < s.min/2)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
