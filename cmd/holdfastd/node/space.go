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
	min  int         // per cent that are kept for Raft
	low  atomic.Bool // less than lowPercent is free: no mail is accepted here
	full atomic.Bool // less than min: no body is taken from other nodes
}

// lowPercent is what must be free for mail to be accepted: half as much again as
// is kept for Raft, so that what others push, and what is under way, finds room.
func lowPercent(min int) int { return min + (min+1)/2 }

// Low and Full are as cluster.Space wants them.
func (s *space) Low() bool  { return s.low.Load() }
func (s *space) Full() bool { return s.full.Load() }

// ample reports whether there is so much room that files may be written which
// are not needed yet: more than what mail is refused at.
func (s *space) ample() bool {
	percent, err := s.free()
	return err == nil && percent >= 2*s.min
}

// tight reports whether there is so little room that mail is refused, as it is now.
func (s *space) tight() bool {
	percent, err := s.free()
	return err == nil && percent < lowPercent(s.min)
}

// watch looks until ctx ends. A look that fails changes nothing: the spool will
// say soon enough what is wrong with the disk.
func (s *space) watch(ctx context.Context) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		if percent, err := s.free(); err == nil {
			s.low.Store(percent < lowPercent(s.min))
			s.full.Store(percent < s.min)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
