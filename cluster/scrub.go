package cluster

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The nightly scrubs: each node has its own time between scrubFrom and
// scrubFrom + scrubSpan o'clock of its own clock, by its rank, so that they do
// not all read at once.
const (
	scrubFrom = 1 * time.Hour
	scrubSpan = 4 * time.Hour
	// scrubLook is how often a node looks whether it is time.
	scrubLook = time.Minute
)

// A scrubber reads the live bodies that this node holds, to find those that are
// damaged while there are good copies elsewhere: every night, and when it is
// asked to. A damaged one is fetched again at once, or else is left to the
// hydration, since it is not held any more.
type scrubber struct {
	log     *slog.Logger
	bodies  *bodies
	replica *replica
	// rank is this node's place among the nodes, for its time of the night.
	rank     func() (rank, of int)
	now      func() time.Time // the node's clock
	throttle *throttle
	wake     chan struct{} // holds one value when a scrub was asked for

	mu sync.Mutex
	// Invariant: stop is not nil exactly while state.Running.
	state peer.Scrub
	stop  chan struct{}
}

// nextScrub returns the first time after some moment at which the node of that
// rank scrubs by itself.
func nextScrub(after time.Time, rank, of int) time.Time {
	midnight := time.Date(after.Year(), after.Month(), after.Day(), 0, 0, 0, 0, after.Location())
	at := scrubFrom + scrubSpan*time.Duration(rank)/time.Duration(max(of, 1))
	if today := midnight.Add(at); today.After(after) {
		return today
	}
	return midnight.AddDate(0, 0, 1).Add(at)
}

// run scrubs when it is time, until ctx ends.
func (s *scrubber) run(ctx context.Context) {
	look := time.NewTicker(scrubLook)
	defer look.Stop()
	last := s.now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-look.C:
			now := s.now()
			rank, of := s.rank()
			if now.Before(nextScrub(last, rank, of)) {
				continue
			}
			last = now
			s.Start("")
			<-s.wake
		}
		s.scrub(ctx)
	}
}

// Start begins a scrub, unless one is running, for the node that asked, or for
// nobody. It returns how far it is.
func (s *scrubber) Start(by string) peer.Scrub {
	total := s.replica.totals()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Running {
		return s.state
	}
	s.state = peer.Scrub{Running: true, BeganUnix: s.now().Unix(), Total: uint64(total.Live), TotalBytes: total.LiveBytes}
	s.stop = make(chan struct{})
	s.log.Info("scrub begins", "bodies", total.Live, "bytes", int64(total.LiveBytes), "asked_by", by)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.state
}

// Stop ends the scrub that is running, if there is one.
func (s *scrubber) Stop(by string) peer.Scrub {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Running && !s.state.Stopped {
		s.state.Stopped = true
		s.log.Info("scrub is stopped", "asked_by", by)
		close(s.stop)
	}
	return s.state
}

// Report returns how far the scrub is that runs, or what came of the last one.
func (s *scrubber) Report() peer.Scrub {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// scrub runs the scrub that Start began.
func (s *scrubber) scrub(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	stop := s.stop
	s.mu.Unlock()
	if stop == nil { // the wake was for one that is over
		return
	}
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	// The oldest first, which is about the order in which they lie on the disk.
	for ref := range s.replica.liveBodies(func(mail.BodyRef) bool { return true }) {
		if s.throttle.wait(ctx, ref.Size) != nil {
			break
		}
		s.verify(ctx, ref)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Running, s.stop = false, nil
	s.state.Stopped = s.state.Stopped || ctx.Err() != nil
	s.state.EndedUnix = s.now().Unix()
	r := s.state
	s.log.Info("scrub ended", "bodies", r.Bodies, "bytes", int64(r.Bytes), "bad", r.Bad, "repaired", r.Repaired,
		"unread", r.Unread, "stopped", r.Stopped, "cause", r.Problem)
}

// verify reads one body and, where it is damaged, fetches it again.
func (s *scrubber) verify(ctx context.Context, ref mail.BodyRef) {
	err := s.bodies.Verify(ref)
	damaged := errors.Is(err, spool.ErrCorrupt)
	if errors.Is(err, spool.ErrNotHeld) && !damaged {
		return // finished since, or never here: not a scrub's business
	}
	repaired := false
	if damaged {
		s.log.Warn("scrub: a body is damaged; fetching it again", "queue_id", ref.ID, "cause", err)
		failed := s.bodies.fetch(ctx, ref, "")
		if repaired = failed == nil; !repaired {
			err = failed
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.state.Bodies++
		s.state.Bytes += ref.Size
	case damaged:
		s.state.Bodies++
		s.state.Bytes += ref.Size
		s.state.Bad++
		if repaired {
			s.state.Repaired++
		} else {
			s.state.Problem = err.Error()
		}
	default:
		s.state.Unread++
		s.state.Problem = err.Error()
	}
}

// Scrub begins a scrub of this node's bodies, or ends it, for whoever asked, and
// tells how far it is.
func (m *Member) Scrub(by string, a peer.ScrubAction) peer.Scrub {
	switch a {
	case peer.ScrubStart:
		return m.scrubber.Start(by)
	case peer.ScrubStop:
		return m.scrubber.Stop(by)
	}
	return m.scrubber.Report()
}
