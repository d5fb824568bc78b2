package smtpd

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A turnstile keeps short the time between a final dot and its reply, in which a
// sender that gives up sends its message twice (RFC 1047). What cannot be
// committed yet is better off waiting before its message was sent: while enough
// messages of this server are under way, the 354 to the next one waits.
//
// How many are enough is measured, not configured: by Little's law as many as are
// committed in the time that a reply may well take, and slack more, so that a
// server that can commit faster finds out. That time is turnReply, or where the
// nodes are far apart or the disks slow, the shortest time that a commit takes.
type turnstile struct {
	now   func() time.Time
	slack int

	mu         sync.Mutex
	committing int
	promised   []*turn // have their 354 and not yet their final dot, oldest first
	waiting    []*turn // the longest waiting first
	windows    [turnWindows]turnWindow
}

// A turn is one message's place.
type turn struct {
	turnstile *turnstile
	begun     chan struct{} // closed when it may be asked for
	granted   time.Time
}

// A turnWindow is what was seen in one turnWindowTime.
type turnWindow struct {
	number    int64
	committed int
	shortest  time.Duration // 0: none
}

const (
	// turnPatience is how long a 354 waits at most. A sender's own patience is
	// two minutes (RFC 5321 section 4.5.3.2.5).
	turnPatience = time.Second
	// turnStall is how long a sender that was told to go ahead keeps its place.
	// One that needs longer for its message, or sends nothing, holds up nobody.
	turnStall = 250 * time.Millisecond
	// turnReply is how long a reply may take on a host that is busy. With more
	// under way at a time a message costs less, since batches are larger.
	turnReply = 30 * time.Millisecond
	// What is remembered: 10 s.
	turnWindowTime = 250 * time.Millisecond
	turnWindows    = 40
)

func newTurnstile(now func() time.Time, slack int) *turnstile {
	return &turnstile{now: now, slack: slack}
}

// turnstiles are one for small messages and one for large ones. What a small one
// costs is a share of a batch: with many under way batches are larger, and each
// message waits longer. What a large one costs is its octets: with many under way
// the disk and the network are never idle, and memory has its own bound. With one
// turnstile for both, the small ones' patience would be the large ones' speed.
type turnstiles struct{ small, large *turnstile }

const (
	// largeBytes: a message is large if its sender declares this much (RFC 1870).
	largeBytes mail.ByteSize = 32 << 10
	// The slacks were measured: see docs/performance.md.
	slackSmall = 6
	slackLarge = 16
)

func newTurnstiles(now func() time.Time) turnstiles {
	return turnstiles{small: newTurnstile(now, slackSmall), large: newTurnstile(now, slackLarge)}
}

// of returns the turnstile of a message, which is small if its size was not
// declared.
func (s turnstiles) of(declared mail.ByteSize) *turnstile {
	if declared >= largeBytes {
		return s.large
	}
	return s.small
}

// goAhead returns when a message may be asked for, after turnPatience at the
// latest, or when ctx ends. Commit or giveUp ends the turn.
func (s *turnstile) goAhead(ctx context.Context) *turn {
	t := &turn{turnstile: s, begun: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, t)
	s.grantLocked()
	s.mu.Unlock()
	select {
	case <-t.begun:
		return t
	default:
	}
	patience := time.NewTimer(turnPatience)
	defer patience.Stop()
	select {
	case <-t.begun:
	case <-patience.C:
		s.giveUp(t)
	case <-ctx.Done():
		s.giveUp(t)
	}
	return t
}

// grantLocked lets those go ahead for whom there is room.
func (s *turnstile) grantLocked() {
	now := s.now()
	for len(s.promised) > 0 && now.Sub(s.promised[0].granted) >= turnStall {
		s.promised = s.promised[1:]
	}
	for limit := s.limitLocked(); len(s.waiting) > 0 && s.committing+len(s.promised) < limit; {
		t := s.waiting[0]
		s.waiting = s.waiting[1:]
		t.granted = now
		s.promised = append(s.promised, t)
		close(t.begun)
	}
}

// giveUp ends a turn without a commit. It does nothing to one that has ended.
func (s *turnstile) giveUp(t *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(t)
	s.grantLocked()
}

func (s *turnstile) endLocked(t *turn) {
	if i := slices.Index(s.waiting, t); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	if i := slices.Index(s.promised, t); i >= 0 {
		s.promised = slices.Delete(s.promised, i, i+1)
	}
}

// commit runs fn, which commits the message of t, whose final dot was read.
func (s *turnstile) commit(t *turn, fn func()) {
	s.mu.Lock()
	s.endLocked(t)
	s.committing++
	s.mu.Unlock()
	begin := s.now()
	defer func() {
		took := s.now().Sub(begin)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.committing--
		w := s.windowLocked()
		w.committed++
		if w.shortest == 0 || took < w.shortest {
			w.shortest = max(took, 1)
		}
		s.grantLocked()
	}()
	fn()
}

// windowLocked returns the window of this moment.
func (s *turnstile) windowLocked() *turnWindow {
	n := s.now().UnixNano() / int64(turnWindowTime)
	w := &s.windows[n%turnWindows]
	if w.number != n {
		*w = turnWindow{number: n}
	}
	return w
}

// limitLocked returns how many messages under way are enough.
func (s *turnstile) limitLocked() int {
	oldest := s.windowLocked().number - turnWindows
	most, shortest := 0, time.Duration(0)
	for _, w := range s.windows {
		if w.number <= oldest || w.shortest == 0 {
			continue
		}
		most = max(most, w.committed)
		if shortest == 0 || w.shortest < shortest {
			shortest = w.shortest
		}
	}
	return s.slack + int(float64(most)*max(shortest, turnReply).Seconds()/turnWindowTime.Seconds())
}
