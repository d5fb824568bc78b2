package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var errCut = errors.New("cut off from the leader")

// failing makes calls of one kind fail: before they are applied, or after.
func failing(c *cluster, call string, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = func(name string, at bool, _ fsm.NodeName) error {
		if name == call && at == after {
			return errCut
		}
		return nil
	}
}

func healed(c *cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = nil
}

// Story 12: no dot without a committed renewal that names the message, whether
// the renewal failed or only its answer.
func TestNoDotWithoutARenewal(t *testing.T) {
	for _, after := range []bool{false, true} {
		p := &deliverytest.Primary{Extensions: extensions}
		bubbleWith(t, p, func(c *cluster) { failing(c, "renew", after) }, nil, func(c *cluster, a *Agent) {
			ids := c.acceptN(3)
			time.Sleep(3 * time.Minute)
			if n := len(p.Received()); n != 0 {
				t.Fatalf("%d dots", n)
			}
			if a.Stats().RightsEnded.Load() == 0 {
				t.Error("the right never ended")
			}
			healed(c)
			// Where the renewals were committed, the messages are marked begun, and
			// reported as not tried: they need not wait.
			c.done(ids, 2*time.Minute)
			c.exactlyOnce(ids)
		})
	}
}

// The lease is renewed once, then the holder is cut off while the primary is
// slow to say 354: the dot would come after D/2.
func TestNoDotLongAfterTheLastRenewal(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Data {
				time.Sleep(LeaseDuration/2 + 2*time.Second)
			}
			return ""
		})
		ids := c.acceptN(1)
		until(t, time.Minute, "a renewal", func() bool { return a.Stats().Renewals.Load() == 1 })
		time.Sleep(time.Second)
		failing(c, "renew", false)
		time.Sleep(2 * time.Minute)
		if n := len(p.Received()); n != 0 {
			t.Fatalf("%d dots", n)
		}
		p.SetAnswer(nil)
		healed(c)
		c.done(ids, 15*time.Minute) // begun and expired: doubt_wait
	})
}

// The same, but the cluster is back in time: the dot follows a fresh renewal.
func TestFreshRenewalBeforeALateDot(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Data {
				time.Sleep(40 * time.Second)
			}
			return ""
		})
		ids := c.acceptN(2)
		until(t, time.Minute, "a renewal", func() bool { return a.Stats().Renewals.Load() == 1 })
		time.Sleep(time.Second)
		failing(c, "renew", false)
		time.Sleep(44 * time.Second)
		healed(c)
		c.done(ids, 5*time.Minute)
		c.exactlyOnce(ids)
	})
}

// The answer to the pull comes after the right has ended: nothing is begun. A
// renewal that is committed gives a right anew, and so none is until then.
func TestLateAnswerToThePullGivesNoRight(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	slow := true
	var unrenewed atomic.Bool
	bubbleWith(t, p, func(c *cluster) {
		c.fault = func(name string, after bool, _ fsm.NodeName) error {
			switch {
			case name == "pull" && after && slow:
				slow = false
				unrenewed.Store(true)
				time.Sleep(LeaseDuration)
			case name == "renew" && unrenewed.Load():
				return errLost
			}
			return nil
		}
	}, func(config *Config) {
		config.Queue = patient{config.Queue}
	}, func(c *cluster, a *Agent) {
		ids := c.acceptN(2)
		until(t, 2*time.Minute, "handed back", func() bool { return a.Stats().RightsEnded.Load() == 2 })
		unrenewed.Store(false)
		if n := a.Stats().Attempts.Load(); n != 0 {
			t.Errorf("%d attempts", n)
		}
		c.done(ids, 3*time.Minute)
		c.exactlyOnce(ids)
	})
}

// patient gives Pull all the time that it wants.
type patient struct{ Queue }

func (p patient) Pull(_ context.Context, w Wish) (Lease, error) {
	return p.Queue.Pull(context.Background(), w)
}

// The host sleeps, in the middle of a message, for longer than its right: timers
// and Go's clock do not notice, CLOCK_BOOTTIME does.
func TestNoDotAfterASuspend(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	var slept atomic.Int64
	bubbleWith(t, p, nil, func(config *Config) {
		boot := config.Boot
		config.Boot = func() time.Duration { return boot() + time.Duration(slept.Load()) }
	}, func(c *cluster, a *Agent) {
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Data {
				time.Sleep(5 * time.Second)
				failing(c, "renew", false)
				slept.Store(int64(LeaseDuration))
			}
			return ""
		})
		c.acceptN(1)
		until(t, time.Minute, "given up", func() bool { return a.Stats().RightsEnded.Load() == 1 })
		if n := len(p.Received()); n != 0 {
			t.Fatalf("%d dots", n)
		}
	})
}

// An operator holds the message while it is under way.
func TestStopBeforeTheDot(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Data {
				time.Sleep(25 * time.Second)
			}
			return ""
		})
		ids := c.acceptN(2)
		time.Sleep(5 * time.Second)
		c.apply("operator", fsm.Hold{ID: ids[0]})
		until(t, 2*time.Minute, "stopped", func() bool { return a.Stats().Stopped.Load() == 1 })
		p.SetAnswer(nil)
		c.done(ids, time.Minute)
		if got := p.Received(); len(got) != 1 || queueIDOf(t, got[0].Octets) != ids[1] {
			t.Fatalf("%d messages arrived", len(got))
		}
		if s := c.message(ids[0]).Recipients[0].State; s != fsm.RecipientHeld {
			t.Errorf("held message is %v", s)
		}
		c.apply("operator", fsm.Release{ID: ids[0]})
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
	})
}

// While the reply to the dot is awaited the lease is kept, and a cut from the
// leader does not end the wait.
func TestRenewsWhileTheDotIsUnanswered(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Dot {
				time.Sleep(9 * time.Minute)
			}
			return ""
		})
		ids := c.acceptN(1)
		time.Sleep(5 * time.Minute)
		if l := len(c.leases()); l != 1 {
			t.Fatalf("%d leases stand", l)
		}
		failing(c, "renew", false)
		time.Sleep(3 * time.Minute)
		if l := len(c.leases()); l != 0 {
			t.Fatalf("%d leases stand", l)
		}
		c.done(ids, 2*time.Minute) // a late delivered is a fact
		c.exactlyOnce(ids)
		if !c.message(ids[0]).PossibleDuplicate {
			t.Error("not marked")
		}
	})
}

func (c *cluster) leases() []fsm.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Leases()
}

// A report is repeated, unchanged, until it is answered, and no message in it is
// touched meanwhile.
func TestReportIsRepeatedUnchanged(t *testing.T) {
	for _, after := range []bool{false, true} {
		p := &deliverytest.Primary{Extensions: extensions}
		bubble(t, p, func(c *cluster, a *Agent) {
			failing(c, "report", after)
			ids := c.acceptN(5)
			until(t, time.Minute, "reported", func() bool { return a.Stats().ReportsRepeated.Load() >= 3 })
			if n := len(p.Received()); n != 5 {
				t.Fatalf("%d messages arrived", n)
			}
			time.Sleep(20 * time.Second)
			healed(c)
			c.done(ids, time.Minute)
			c.exactlyOnce(ids)
			time.Sleep(time.Second)
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, r := range c.reports[1:] {
				if fmt.Sprint(r) != fmt.Sprint(c.reports[0]) {
					t.Errorf("another report: %v, first %v", r, c.reports[0])
				}
			}
		})
	}
}

// Requests are told apart across renewals and restarts.
func TestRequestIDsAreUnique(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	var mu sync.Mutex
	seen := map[fsm.RequestID]bool{}
	bubbleWith(t, p, nil, func(config *Config) {
		config.Queue = spy{config.Queue, func(r fsm.RequestID) {
			mu.Lock()
			defer mu.Unlock()
			if seen[r] || r.Number == 0 || r.Boot != config.BootID {
				t.Errorf("request %+v", r)
			}
			seen[r] = true
		}}
	}, func(c *cluster, a *Agent) {
		c.done(c.acceptN(30), time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < 3 {
			t.Errorf("%d requests", len(seen))
		}
	})
}

type spy struct {
	Queue
	see func(fsm.RequestID)
}

func (s spy) Renew(ctx context.Context, token fsm.Token, r fsm.RequestID, begun []mail.QueueID) ([]mail.QueueID, error) {
	s.see(r)
	return s.Queue.Renew(ctx, token, r, begun)
}

// Shutdown hands back what has no dot, and waits for the reply to one that has.
func TestShutdownHandsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &deliverytest.Primary{Extensions: extensions}
		p.Answer = func(stage, _ string) string {
			if stage == deliverytest.Dot {
				time.Sleep(10 * time.Second)
			}
			return ""
		}
		c := newCluster(t, p)
		defer c.stop()
		a := c.agent("a", 0, 3, nil)
		ids := c.acceptN(8)
		until(t, time.Minute, "a dot", func() bool { return len(p.Received()) == 1 })
		shutdown(t, a, 30*time.Second)
		states := c.states(ids)
		if states[fsm.RecipientDelivered] != 1 || states[fsm.RecipientQueued] != 7 || len(c.leases()) != 0 {
			t.Errorf("%v, %d leases", states, len(c.leases()))
		}
		if n := c.counts().Due; n != 7 {
			t.Errorf("%d due, the rest waits for nothing", n)
		}
	})
}

// A dot that is not answered in the time of a shutdown is in doubt, and so
// reported within that time.
func TestShutdownReportsDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &deliverytest.Primary{Extensions: extensions, Answer: at(deliverytest.Dot, deliverytest.Hang)}
		c := newCluster(t, p)
		defer c.stop()
		a := c.agent("a", 0, 3, nil)
		ids := c.acceptN(3)
		until(t, time.Minute, "a dot", func() bool { return len(p.Received()) == 1 })
		start := time.Now()
		shutdown(t, a, 10*time.Second)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		if m := c.message(ids[0]); !m.PossibleDuplicate || m.Parts[0].DoubtUntil == 0 || len(c.leases()) != 0 {
			t.Errorf("%+v", m)
		}
		if n := c.counts().Due; n != 2 {
			t.Errorf("%d due", n)
		}
	})
}

// A shutdown that gets no answer from the cluster ends all the same.
func TestShutdownEndsWithoutTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &deliverytest.Primary{Extensions: extensions}
		c := newCluster(t, p)
		defer c.stop()
		a := c.agent("a", 0, 3, nil)
		failing(c, "report", false)
		c.acceptN(3)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := a.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// Content that is not here, or does not read to its end, is never delivered in
// part.
func TestUnreadableContent(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		c.mu.Lock()
		c.openBody = func(id mail.QueueID, content []byte) (io.ReadSeekCloser, error) {
			switch id {
			case c.order[0]:
				return nil, errors.New("not held")
			case c.order[1]:
				return broken{strings.NewReader(string(content[:5]))}, nil
			}
			return broken{strings.NewReader(string(content))}, nil
		}
		c.mu.Unlock()
		ids := c.acceptN(3)
		time.Sleep(30 * time.Second)
		if n := len(p.Received()); n != 0 {
			t.Fatalf("%d messages arrived", n)
		}
		if n := a.Stats().BodiesMissing.Load(); n < 2 || n > 60 {
			t.Errorf("%d times in 30 s", n)
		}
		c.mu.Lock()
		c.openBody = nil
		c.mu.Unlock()
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
	})
}

// broken fails where it should end.
type broken struct{ *strings.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = errors.New("checksum mismatch")
	}
	return n, err
}
func (broken) Close() error { return nil }

// One report of a message ends its lease record, so it must fit into an entry
// however many recipients were refused with however much text.
func TestReportsFitIntoAnEntry(t *testing.T) {
	o := fsm.MessageOutcomes{Recipients: make([]fsm.RecipientOutcome, 1000)}
	for i := range o.Recipients {
		o.Recipients[i] = fsm.RecipientOutcome{Recipient: i, Outcome: fsm.Deferred, Tried: true, Reply: mail.Reply{
			Code: 450, Enhanced: mail.EnhancedCode{4, 999, 999}, Text: strings.Repeat("ü", 128)}}
	}
	many := newReporter(&Agent{}, testDomain, 1)
	many.add(o)
	small := fsm.MessageOutcomes{Recipients: slices.Clone(o.Recipients[:100])}
	for range 30 {
		many.add(small)
	}
	total := 0
	for batch := many.take(); len(batch) > 0; batch = many.take() {
		b, err := fsm.EncodeCommand(fsm.Command{Node: "a", Action: fsm.RecordOutcomes{Holder: "a", Token: 1 << 60, Messages: batch}})
		if err != nil || len(b) > 64<<10 {
			t.Fatalf("%d octets, %v", len(b), err)
		}
		total += len(batch)
	}
	if total != 31 {
		t.Fatalf("%d of 31 messages reported", total)
	}
}

// An answer counts from when its request was sent, also if it was long under
// way: the dot would come 24 s after the answer and 33 s after the request.
func TestSlowRenewalCountsFromItsSending(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, _ string) string {
		if stage == deliverytest.Data {
			time.Sleep(33 * time.Second)
		}
		return ""
	}}
	renewals := 0
	bubbleWith(t, p, func(c *cluster) {
		c.fault = func(name string, after bool, _ fsm.NodeName) error {
			switch {
			case name != "renew":
			case after:
				time.Sleep(9 * time.Second)
			default:
				if renewals++; renewals > 1 {
					return errCut
				}
			}
			return nil
		}
	}, nil, func(c *cluster, a *Agent) {
		c.acceptN(1)
		until(t, 2*time.Minute, "given up", func() bool { return a.Stats().RightsEnded.Load() == 1 })
		if n := len(p.Received()); n != 0 {
			t.Errorf("%d dots", n)
		}
	})
}
