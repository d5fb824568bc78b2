package delivery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var extensions = []string{"PIPELINING", "SIZE 52428800", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES"}

func TestDeliversOctetForOctet(t *testing.T) {
	for _, offered := range [][]string{nil, extensions} {
		bubble(t, &deliverytest.Primary{Extensions: offered}, func(c *cluster, a *Agent) {
			ids := c.accept(
				"Subject: plain\r\n\r\nhello\r\n", "", ".\r\n", "..\r\n.\r\n.x\r\n",
				strings.Repeat("a", 998)+"\r\n", "."+strings.Repeat("b", 5000)+"\r\n",
				"\xff\xfe\x80\r\n", strings.Repeat("0123456789abcdef\r\n", 40_000))
			ids = append(ids, c.acceptN(200)...)
			c.done(ids, time.Minute)
			c.exactlyOnce(ids)
			if s := a.Stats(); s.Delivered.Load() != int64(len(ids)) || s.Dots.Load() != int64(len(ids)) || s.InDoubt.Load() != 0 {
				t.Errorf("counted %d delivered, %d dots", s.Delivered.Load(), s.Dots.Load())
			}
		})
	}
}

// Many messages cost few entries: a grant, a renewal per window, a report per
// batch.
func TestEntriesPerMessage(t *testing.T) {
	bubble(t, &deliverytest.Primary{Extensions: extensions}, func(c *cluster, a *Agent) {
		ids := c.acceptN(1000)
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		s := a.Stats()
		entries := s.Pulls.Load() + s.Renewals.Load() + s.Reports.Load()
		t.Logf("1000 messages: %d pulls, %d renewals, %d reports", s.Pulls.Load(), s.Renewals.Load(), s.Reports.Load())
		if entries > 300 {
			t.Errorf("%d entries, and 0.3 a message are the most", entries)
		}
	})
}

func TestSeveralNodesShareTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &deliverytest.Primary{Extensions: extensions}
		c := newCluster(t, p)
		defer c.stop()
		// Each message takes the primary half a second, so that there is something
		// to share.
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Data {
				time.Sleep(500 * time.Millisecond)
			}
			return ""
		})
		agents := []*Agent{c.agent("a", 0, 3, nil), c.agent("b", 1, 3, nil), c.agent("c", 2, 3, nil)}
		ids := c.acceptN(300)
		took := c.done(ids, 5*time.Minute)
		c.exactlyOnce(ids)
		for _, a := range agents {
			if a.Stats().Delivered.Load() == 0 {
				t.Error("a node delivered nothing")
			}
			if n := a.Stats().Connections.Load(); n > 60 {
				t.Errorf("%d connections", n)
			}
			shutdown(t, a, time.Minute)
		}
		t.Logf("300 messages of half a second in %v", took)
	})
}

// oneConnection is a queue whose leader allows each node one connection, and gives
// nothing to one that has more.
type oneConnection struct{ node }

func (q oneConnection) Pull(ctx context.Context, w Wish) (Lease, error) {
	time.Sleep(10 * time.Millisecond) // the leader is a node elsewhere
	if w.Connections > 1 {
		return Lease{Connections: 1}, nil
	}
	l, err := q.node.Pull(ctx, w)
	l.Connections = 1
	return l, err
}

// TestRegressionOneConnectionAfterManyEmptyPulls: a node that got nothing for a while,
// and would then have several connections, has as many as the leader allows, though
// it asks less often than leases last.
func TestRegressionOneConnectionAfterManyEmptyPulls(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, nil, func(c *Config) {
		c.Queue, c.LeaseDuration = oneConnection{c.Queue.(node)}, emptyMost/2
	}, func(c *cluster, _ *Agent) {
		c.done(c.acceptN(1), time.Minute) // from here on there is more than one connection
		c.mu.Lock()
		c.fault = func(name string, _ bool, _ fsm.NodeName) error {
			if name == "pull" {
				return errors.New("no leader")
			}
			return nil
		}
		c.mu.Unlock()
		ids := c.acceptN(20 * messagesPerConnection)
		time.Sleep(time.Minute)
		c.mu.Lock()
		c.fault = nil
		c.mu.Unlock()
		c.done(ids, 3*emptyMost)
	})
}

func TestRecipientsAreJudgedOneByOne(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
		switch {
		case stage == deliverytest.Rcpt && strings.Contains(line, "no@"):
			return "550 5.1.1 nobody"
		case stage == deliverytest.Rcpt && strings.Contains(line, "later@"):
			return "450 4.2.0 later"
		}
		return ""
	}}
	bubble(t, p, func(c *cluster, a *Agent) {
		id := c.acceptFor(mail.Envelope{}, "x\r\n", "yes@example.test", "no@example.test", "later@example.test")
		until(t, time.Minute, "delivered", func() bool { return len(p.Received()) == 1 })
		time.Sleep(time.Second)
		m := c.message(id)
		if m.Recipients[0].State != fsm.RecipientDelivered || m.Recipients[1].State != fsm.RecipientHeld || m.Recipients[2].State != fsm.RecipientQueued {
			t.Errorf("%+v", m.Recipients)
		}
		p.SetAnswer(nil)
		c.done([]mail.QueueID{id}, 5*time.Minute)
		got := p.Received()
		if len(got) != 2 || len(got[1].To) != 1 || !strings.Contains(got[1].To[0], "later@") || string(got[0].Octets) != string(got[1].Octets) {
			t.Errorf("the second attempt is another: %+v", got)
		}
	})
}

func TestSMTPUTF8WaitsForAPrimaryThatHasIt(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubble(t, p, func(c *cluster, a *Agent) {
		id := c.acceptFor(mail.Envelope{SMTPUTF8: true}, "Subject: pelé\r\n\r\n", "pelé@example.test")
		plain := c.acceptN(1)
		c.done(plain, time.Minute)
		time.Sleep(time.Second)
		if m := c.message(id); m.Recipients[0].State != fsm.RecipientQueued || m.Recipients[0].Reply.Code != 450 || m.Parts[0].Attempts != 1 {
			t.Fatalf("%+v", m)
		}
	})
}

// A message in hand whenever the connection is lost must not block all others.
func TestMessageThatEndsConnectionsDoesNotBlockTheQueue(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
		if stage == deliverytest.Mail && strings.Contains(line, "<sender0@") {
			return deliverytest.Drop
		}
		return ""
	}}
	bubble(t, p, func(c *cluster, a *Agent) {
		ids := c.acceptN(10)
		until(t, 30*time.Second, "the others delivered", func() bool { return c.states(ids)[fsm.RecipientDelivered] == 9 })
		p.SetAnswer(nil)
		c.done(ids, 10*time.Minute)
		c.exactlyOnce(ids)
	})
}
