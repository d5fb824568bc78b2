package smtpd

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestPaceKeepsCommitsFew: many senders, commits that take the longer the more
// there are: as many are under way at once as paceReply and the slack say, and none
// is left waiting.
func TestPaceKeepsCommitsFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(time.Now, paceSlackSmall)
		var mu sync.Mutex
		var now, most, done int
		var senders sync.WaitGroup
		for range 100 {
			senders.Go(func() {
				for range 20 {
					turn := p.goAhead(t.Context())
					p.commit(turn, func() {
						mu.Lock()
						now++
						most = max(most, now)
						cost := time.Duration(now) * time.Millisecond // the server can do one in a millisecond
						mu.Unlock()
						time.Sleep(cost)
						mu.Lock()
						now--
						done++
						mu.Unlock()
					})
				}
			})
		}
		senders.Wait()
		if enough := paceSlackSmall + int(paceReply/time.Millisecond); done != 2000 || most > enough {
			t.Errorf("%d committed, up to %d at once, want 2000 and %d", done, most, enough)
		}
	})
}

// TestPaceFindsWhatIsNeeded: where a commit takes long however few there are, as
// between distant nodes, so many go ahead that the line is full.
func TestPaceFindsWhatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(time.Now, paceSlackSmall)
		var senders sync.WaitGroup
		begin, count := time.Now(), 0
		var mu sync.Mutex
		for range 200 {
			senders.Go(func() {
				for time.Since(begin) < 30*time.Second {
					turn := p.goAhead(t.Context())
					p.commit(turn, func() { time.Sleep(250 * time.Millisecond) })
					if time.Since(begin) > 20*time.Second {
						mu.Lock()
						count++
						mu.Unlock()
					}
				}
			})
		}
		senders.Wait()
		// 200 senders and a quarter of a second: 800 a second at best.
		if perSecond := count / 10; perSecond < 700 {
			t.Errorf("%d a second after 20 s, want nearly 800", perSecond)
		}
	})
}

// TestPaceIsNotHeldUp: senders that were told to go ahead and send nothing keep
// their places for a moment only, and nobody waits longer than the patience.
func TestPaceIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(time.Now, paceSlackSmall)
		stalled := make([]*turn, 10*paceSlackSmall)
		var stalling sync.WaitGroup
		for i := range stalled {
			stalling.Go(func() { stalled[i] = p.goAhead(t.Context()) })
		}
		stalling.Wait()
		for i := range 20 {
			begin := time.Now()
			turn := p.goAhead(t.Context())
			if waited := time.Since(begin); waited > pacePatience {
				t.Errorf("message %d waited %v", i, waited)
			}
			p.commit(turn, func() { time.Sleep(time.Millisecond) })
		}
		time.Sleep(time.Second) // much longer than a place is kept
		begin := time.Now()
		p.commit(p.goAhead(t.Context()), func() {})
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("waited %v for senders that have stalled", waited)
		}
		for _, turn := range stalled {
			p.giveUp(turn)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.committing != 0 || len(p.promised) != 0 || len(p.waiting) != 0 {
			t.Errorf("left over: %d committing, %d promised, %d waiting", p.committing, len(p.promised), len(p.waiting))
		}
	})
}

// TestPacesAreApart: small messages that wait for each other hold up no large
// one, nor the other way round.
func TestPacesAreApart(t *testing.T) {
	for _, sizes := range [][2]mail.ByteSize{{0, paceLarge}, {paceLarge, 0}, {paceLarge - 1, 10 << 20}} {
		synctest.Test(t, func(t *testing.T) {
			p := newPaces(time.Now)
			busy, other := p.of(sizes[0]), p.of(sizes[1])
			release := make(chan struct{})
			var committing sync.WaitGroup
			for range 2 * paceSlackLarge {
				committing.Go(func() { busy.commit(busy.goAhead(t.Context()), func() { <-release }) })
			}
			synctest.Wait()
			begin := time.Now()
			other.commit(other.goAhead(t.Context()), func() {})
			if time.Since(begin) > 0 {
				t.Errorf("%d octets wait for %d", sizes[1], sizes[0])
			}
			close(release)
			committing.Wait()
		})
	}
}

// TestPaceEndsWithItsServer: who waits is let go when the server ends.
func TestPaceEndsWithItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(time.Now, paceSlackSmall)
		release := make(chan struct{})
		var committing sync.WaitGroup
		for range 2 * paceSlackSmall {
			committing.Go(func() { p.commit(p.goAhead(t.Context()), func() { <-release }) })
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		p.giveUp(p.goAhead(ctx))
		if time.Since(begin) > 0 {
			t.Error("waited although the server has ended")
		}
		close(release)
		committing.Wait()
	})
}
