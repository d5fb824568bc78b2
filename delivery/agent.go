package delivery

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// workPollInterval is how often Work is looked at when nobody says that it
	// has changed: a lost hint costs this much, not the mail.
	workPollInterval = 5 * time.Second
	// workSettle lets a burst of changes pass before Work is looked at again.
	workSettle = 20 * time.Millisecond
	// queueCallTimeout bounds one call of the Queue that commits something.
	queueCallTimeout = 10 * time.Second
	// doubtReserve is how much of a shutdown's time is kept for reporting what
	// became of the dots in flight.
	doubtReserve = 2 * time.Second
)

// An Agent delivers what it can lease. Make one with New, then Start, and end
// it with Shutdown.
type Agent struct {
	c        Config
	stats    Stats
	requests atomic.Uint64

	// Three contexts end one after the other. work ends first: nothing new is
	// begun, and what is before its dot is given up. dots ends the wait for
	// replies to dots. final ends everything that talks to the Queue.
	work, dots, final                   context.Context
	cancelWork, cancelDots, cancelFinal context.CancelFunc

	running sync.WaitGroup
	joining sync.Mutex           // held while who is not in running joins it, or work ends
	hops    map[mail.Domain]*hop // only the loop of run touches it
	awaited awaited
	plain   plainHops
}

// New returns an Agent that has not begun.
func New(c Config) (*Agent, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Agent{c: c, hops: make(map[mail.Domain]*hop)}, nil
}

// Stats returns the agent's counters.
func (a *Agent) Stats() *Stats { return &a.stats }

// Start begins to work. It is called once.
func (a *Agent) Start() {
	a.final, a.cancelFinal = context.WithCancel(context.Background())
	a.dots, a.cancelDots = context.WithCancel(a.final)
	a.work, a.cancelWork = context.WithCancel(a.final)
	a.running.Go(a.run)
}

// Shutdown gives back what is leased: what has no dot yet is reported as
// deferred and not tried; a dot in flight waits for its reply until shortly
// before ctx's deadline, and is then reported in doubt. When ctx ends, Shutdown
// stops everything and returns ctx's error if something was left unreported or
// unfinished. No goroutine is left when it returns.
func (a *Agent) Shutdown(ctx context.Context) error {
	if a.cancelWork == nil {
		return nil // It was never started.
	}
	a.joining.Lock()
	a.cancelWork()
	a.joining.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timer := time.AfterFunc(left-min(doubtReserve, left/4), a.cancelDots)
		defer timer.Stop()
	}
	stop := context.AfterFunc(ctx, a.cancelFinal)
	a.running.Wait()
	late := !stop()
	a.cancelFinal()
	if late {
		return ctx.Err()
	}
	return nil
}

// run hands each domain's Work to its loop.
func (a *Agent) run() {
	poll := time.NewTicker(workPollInterval)
	defer poll.Stop()
	for {
		changed := a.c.Queue.Changed()
		works := a.c.Queue.Work()
		listed := make(map[mail.Domain]bool, len(works))
		for _, w := range works {
			if w.Domain.OnDemand {
				continue // Nobody can connect to its primary: see Answer.
			}
			listed[w.Domain.Name] = true
			h := a.hops[w.Domain.Name]
			if h == nil {
				h = newHop(a, w)
				a.hops[w.Domain.Name] = h
				a.stats.Hops.Add(1)
				a.running.Go(h.run)
			} else {
				h.update(&w)
			}
		}
		for name, h := range a.hops {
			if listed[name] {
				continue
			}
			if h.update(nil); h.retire() {
				delete(a.hops, name)
				a.stats.Hops.Add(-1)
			}
		}
		select {
		case <-changed:
		case <-poll.C:
			continue
		case <-a.work.Done():
			return
		}
		select {
		case <-time.After(workSettle):
		case <-a.work.Done():
			return
		}
	}
}

// request returns an id that no other request of this node ever had.
func (a *Agent) request() fsm.RequestID {
	return fsm.RequestID{Boot: a.c.BootID, Number: a.requests.Add(1)}
}

// callContext bounds one call of the Queue.
func (a *Agent) callContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.final, queueCallTimeout)
}

// right is how long after a request was sent its answer lets us act.
func (a *Agent) right() time.Duration {
	return a.c.LeaseDuration - a.c.LeaseDuration/driftDivisor
}

// jitter returns d changed by up to a tenth, either way.
func (a *Agent) jitter(d time.Duration) time.Duration {
	return d + time.Duration((a.c.Random()-0.5)/5*float64(d))
}

// sleep waits, and reports whether ctx went on meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
