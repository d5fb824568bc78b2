package smtpd

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestTurnstileKeepsCommitsFew: many senders, commits that take the longer the more
// there are: as many are under way at once as turnReply and the slack say, and none
// is left waiting.
func TestTurnstileKeepsCommitsFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(time.Now, slackSmall)
		var mu sync.Mutex
		var now, most, done int
		var senders sync.WaitGroup
		for range 100 {
			senders.Go(func() {
				for range 20 {
					turn := s.goAhead(t.Context())
					s.commit(turn, func() {
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
		if enough := slackSmall + int(turnReply/time.Millisecond); done != 2000 || most > enough {
			t.Errorf("%d committed, up to %d at once, want 2000 and %d", done, most, enough)
		}
	})
}

// TestTurnstileFindsWhatIsNeeded: where a commit takes long however few there are, as
// between distant nodes, so many go ahead that the line is full.
func TestTurnstileFindsWhatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(time.Now, slackSmall)
		var senders sync.WaitGroup
		begin, count := time.Now(), 0
		var mu sync.Mutex
		for range 200 {
			senders.Go(func() {
				for time.Since(begin) < 30*time.Second {
					turn := s.goAhead(t.Context())
					s.commit(turn, func() { time.Sleep(250 * time.Millisecond) })
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

// TestTurnstileIsNotHeldUp: senders that were told to go ahead and send nothing keep
// their places for a moment only, and nobody waits longer than the patience.
func TestTurnstileIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(time.Now, slackSmall)
		stalled := make([]*turn, 10*slackSmall)
		var stalling sync.WaitGroup
		for i := range stalled {
			stalling.Go(func() { stalled[i] = s.goAhead(t.Context()) })
		}
		stalling.Wait()
		for i := range 20 {
			begin := time.Now()
			turn := s.goAhead(t.Context())
			if waited := time.Since(begin); waited > turnPatience {
				t.Errorf("message %d waited %v", i, waited)
			}
			s.commit(turn, func() { time.Sleep(time.Millisecond) })
		}
		time.Sleep(time.Second) // much longer than a place is kept
		begin := time.Now()
		s.commit(s.goAhead(t.Context()), func() {})
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("waited %v for senders that have stalled", waited)
		}
		for _, turn := range stalled {
			s.giveUp(turn)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.committing != 0 || len(s.promised) != 0 || len(s.waiting) != 0 {
			t.Errorf("left over: %d committing, %d promised, %d waiting", s.committing, len(s.promised), len(s.waiting))
		}
	})
}

// TestTurnstilesAreApart: small messages that wait for each other hold up no large
// one, nor the other way round.
func TestTurnstilesAreApart(t *testing.T) {
	for _, sizes := range [][2]mail.ByteSize{{0, largeBytes}, {largeBytes, 0}, {largeBytes - 1, 10 << 20}} {
		synctest.Test(t, func(t *testing.T) {
			s := newTurnstiles(time.Now)
			busy, other := s.of(sizes[0]), s.of(sizes[1])
			release := make(chan struct{})
			var committing sync.WaitGroup
			for range 2 * slackLarge {
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

// TestTurnstileEndsWithItsServer: who waits is let go when the server ends.
func TestTurnstileEndsWithItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(time.Now, slackSmall)
		release := make(chan struct{})
		var committing sync.WaitGroup
		for range 2 * slackSmall {
			committing.Go(func() { s.commit(s.goAhead(t.Context()), func() { <-release }) })
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		s.giveUp(s.goAhead(ctx))
		if time.Since(begin) > 0 {
			t.Error("waited although the server has ended")
		}
		close(release)
		committing.Wait()
	})
}
