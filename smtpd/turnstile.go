package smtpd

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A pace keeps short the time between a final dot and its reply, in which a
// sender that gives up sends its message twice (RFC 1047). What cannot be
// committed yet is better off waiting before its message was sent: while enough
// messages of this server are under way, the 354 to the next one waits.
//
// How many are enough is measured, not configured: by Little's law as many as are
// committed in the time that a reply may well take, and slack more, so that a
// server that can commit faster finds out. That time is paceReply, or where the
// nodes are far apart or the disks slow, the shortest time that a commit takes.
type pace struct {
	now   func() time.Time
	slack int

	mu         sync.Mutex
	committing int
	promised   []*turn // have their 354 and not yet their final dot, oldest first
	waiting    []*turn // the longest waiting first
	windows    [paceWindows]paceWindow
}

// A turn is one message's place.
type turn struct {
	pace    *pace
	begun   chan struct{} // closed when it may be asked for
	granted time.Time
}

// A paceWindow is what was seen in one paceWindowTime.
type paceWindow struct {
	number    int64
	committed int
	shortest  time.Duration // 0: none
}

const (
	// pacePatience is how long a 354 waits at most. A sender's own patience is
	// two minutes (RFC 5321 section 4.5.3.2.5).
	pacePatience = time.Second
	// paceStall is how long a sender that was told to go ahead keeps its place.
	// One that needs longer for its message, or sends nothing, holds up nobody.
	paceStall = 250 * time.Millisecond
	// paceReply is how long a reply may take on a host that is busy. With more
	// under way at a time a message costs less, since batches are larger.
	paceReply = 30 * time.Millisecond
	// What is remembered: 10 s.
	paceWindowTime = 250 * time.Millisecond
	paceWindows    = 40
)

func newPace(now func() time.Time, slack int) *pace { return &pace{now: now, slack: slack} }

// paces are one pace for small messages and one for large ones. What a small one
// costs is a share of a batch: with many under way batches are larger, and each
// message waits longer. What a large one costs is its octets: with many under way
// the disk and the network are never idle, and memory has its own bound. With one
// pace for both, the small ones' patience would be the large ones' speed.
type paces struct{ small, large *pace }

const (
	// A message is large if its sender declares this much (RFC 1870).
	paceLarge mail.ByteSize = 32 << 10
	// The slacks were measured: see docs/performance.md.
	paceSlackSmall = 6
	paceSlackLarge = 16
)

func newPaces(now func() time.Time) paces {
	return paces{small: newPace(now, paceSlackSmall), large: newPace(now, paceSlackLarge)}
}

// of returns the pace of a message, which is small if its size was not declared.
func (p paces) of(declared mail.ByteSize) *pace {
	if declared >= paceLarge {
		return p.large
	}
	return p.small
}

// goAhead returns when a message may be asked for, after pacePatience at the
// latest, or when ctx ends. Commit or giveUp ends the turn.
func (p *pace) goAhead(ctx context.Context) *turn {
	t := &turn{pace: p, begun: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, t)
	p.grantLocked()
	p.mu.Unlock()
	select {
	case <-t.begun:
		return t
	default:
	}
	patience := time.NewTimer(pacePatience)
	defer patience.Stop()
	select {
	case <-t.begun:
	case <-patience.C:
		p.giveUp(t)
	case <-ctx.Done():
		p.giveUp(t)
	}
	return t
}

// grantLocked lets those go ahead for whom there is room.
func (p *pace) grantLocked() {
	now := p.now()
	for len(p.promised) > 0 && now.Sub(p.promised[0].granted) >= paceStall {
		p.promised = p.promised[1:]
	}
	for limit := p.limitLocked(); len(p.waiting) > 0 && p.committing+len(p.promised) < limit; {
		t := p.waiting[0]
		p.waiting = p.waiting[1:]
		t.granted = now
		p.promised = append(p.promised, t)
		close(t.begun)
	}
}

// giveUp ends a turn without a commit. It does nothing to one that has ended.
func (p *pace) giveUp(t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(t)
	p.grantLocked()
}

func (p *pace) endLocked(t *turn) {
	if i := slices.Index(p.waiting, t); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	if i := slices.Index(p.promised, t); i >= 0 {
		p.promised = slices.Delete(p.promised, i, i+1)
	}
}

// commit runs fn, which commits the message of t, whose final dot was read.
func (p *pace) commit(t *turn, fn func()) {
	p.mu.Lock()
	p.endLocked(t)
	p.committing++
	p.mu.Unlock()
	begin := p.now()
	defer func() {
		took := p.now().Sub(begin)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.committing--
		w := p.windowLocked()
		w.committed++
		if w.shortest == 0 || took < w.shortest {
			w.shortest = max(took, 1)
		}
		p.grantLocked()
	}()
	fn()
}

// windowLocked returns the window of this moment.
func (p *pace) windowLocked() *paceWindow {
	n := p.now().UnixNano() / int64(paceWindowTime)
	w := &p.windows[n%paceWindows]
	if w.number != n {
		*w = paceWindow{number: n}
	}
	return w
}

// limitLocked returns how many messages under way are enough.
func (p *pace) limitLocked() int {
	oldest := p.windowLocked().number - paceWindows
	most, shortest := 0, time.Duration(0)
	for _, w := range p.windows {
		if w.number <= oldest || w.shortest == 0 {
			continue
		}
		most = max(most, w.committed)
		if shortest == 0 || w.shortest < shortest {
			shortest = w.shortest
		}
	}
	return p.slack + int(float64(most)*max(shortest, paceReply).Seconds()/paceWindowTime.Seconds())
}
