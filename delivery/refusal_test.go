package delivery

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// refusals keeps what RefusedAlarm was told last.
type refusals struct {
	mu   sync.Mutex
	last *smtpclient.StageError
	n    int // times that it was told of one
}

func (r *refusals) tell(_ mail.Domain, e *smtpclient.StageError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = e
	if e != nil {
		r.n++
	}
}

// standing returns the alarm's text, "" for none.
func (r *refusals) standing() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		return ""
	}
	return r.last.Error()
}

// Fault 39: a primary that blocks us, at its banner, to EHLO or to MAIL. No message
// is failed, an alarm says what it says, and ends when it takes us.
func TestAlarmWhenThePrimaryRefusesUs(t *testing.T) {
	for _, row := range []struct{ stage, reply, alarm string }{
		{deliverytest.Banner, "554 5.7.1 your address is blocked", "banner: 554 5.7.1 your address is blocked"},
		{deliverytest.Banner, "421 4.3.2 too many connections", "banner: 421 4.3.2 too many connections"},
		{deliverytest.Banner, "451 4.3.0 later", "banner: 451 4.3.0 later"},
		{deliverytest.Banner, deliverytest.Drop, ""},
		{deliverytest.Hello, "550 5.7.1 go away", "EHLO: 550 5.7.1 go away"},
		{deliverytest.Hello, "421 4.3.2 going down", "EHLO: 421 4.3.2 going down"},
		{deliverytest.Hello, deliverytest.Drop, ""},
		{deliverytest.Mail, "550 5.7.1 your address is blocked", "MAIL: 550 5.7.1 your address is blocked"},
		{deliverytest.Mail, "530 5.7.0 STARTTLS first", "MAIL: 530 5.7.0 STARTTLS first"},
		{deliverytest.Mail, "552 5.3.4 too large", ""},
		{deliverytest.Mail, "451 4.3.0 later", ""},
		{deliverytest.Rcpt, "550 5.1.1 nobody", ""},
	} {
		for _, offered := range [][]string{extensions, nil} {
			t.Run(row.stage+" "+row.reply, func(t *testing.T) {
				var told refusals
				p := &deliverytest.Primary{Extensions: offered, Answer: at(row.stage, row.reply)}
				bubbleWith(t, p, nil, func(c *Config) { c.RefusedAlarm = told.tell }, func(c *cluster, a *Agent) {
					ids := c.acceptN(20)
					time.Sleep(time.Minute)
					if got := told.standing(); got != row.alarm {
						t.Errorf("alarm %q", got)
					}
					if n := c.states(ids)[fsm.RecipientHeld]; n > 0 && row.stage != deliverytest.Rcpt {
						t.Errorf("%d failed", n)
					}
					p.SetAnswer(nil)
					c.done(ids, 30*time.Minute)
					if got := told.standing(); got != "" {
						t.Errorf("alarm %q when it is over", got)
					}
				})
			})
		}
	}
}

// Single senders that the primary does not like are no alarm, however often they
// are tried.
func TestRefusedSendersAreNoAlarm(t *testing.T) {
	var told refusals
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
		if stage == deliverytest.Mail && (strings.Contains(line, "<sender3@") || strings.Contains(line, "<sender7@")) {
			return "553 5.1.8 no such domain"
		}
		return ""
	}}
	bubbleWith(t, p, nil, func(c *Config) { c.RefusedAlarm = told.tell }, func(c *cluster, a *Agent) {
		ids := c.acceptN(20)
		time.Sleep(6 * time.Hour)
		if n := c.states(ids)[fsm.RecipientDelivered]; n != 18 || told.n != 0 || c.message(ids[3]).Parts[0].Attempts < 4 {
			t.Errorf("%d delivered, told %d times, %d attempts", n, told.n, c.message(ids[3]).Parts[0].Attempts)
		}
	})
}

// A primary that answers every node, and takes none, is not down. It is tried as often
// as one that is, its alarm stands once on each node, and when it lets them in the first
// mail moves within 30 s, though only one node is let in; the alarms of all that are
// end, also where nothing is left to deliver.
func TestRefusingPrimaryIsProbedInTurn(t *testing.T) {
	for _, refusal := range []string{"421 4.3.2 not now", "554 5.7.1 your address is blocked", "451 4.7.1 later"} {
		for _, stage := range []string{deliverytest.Banner, deliverytest.Hello} {
			t.Run(stage+" "+refusal, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &deliverytest.Primary{Extensions: extensions, Answer: at(stage, refusal)}
					c := newCluster(t, p)
					defer c.stop()
					told := map[fsm.NodeName]*refusals{"a": {}, "b": {}, "c": {}}
					c.barred = func(n fsm.NodeName) bool { return told[n].standing() != "" }
					var agents []*Agent
					for rank, name := range []fsm.NodeName{"a", "b", "c"} {
						agents = append(agents, c.agent(name, rank, 3, func(config *Config) { config.RefusedAlarm = told[name].tell }))
					}
					ids := c.acceptN(20)
					until(t, time.Minute, "refusing", func() bool { return c.hop().State == fsm.NextHopRefusing })
					began, probed := p.Sessions(), probes(agents)
					for range 20 * 60 {
						time.Sleep(time.Second)
						if s := c.hop().State; s != fsm.NextHopRefusing {
							t.Fatalf("%v", s)
						}
					}
					// EHLO that is refused is followed by HELO over the same connection.
					if n := p.Sessions() - began; n < 140 || n > 160 {
						t.Errorf("%d connections in 20 minutes", n)
					}
					if n := probes(agents) - probed; n < 140 {
						t.Errorf("%d of them by turns", n)
					}
					c.mu.Lock()
					if n := len(c.hops); n > 2*len(agents) {
						t.Errorf("%d reports of the next hop", n)
					}
					c.mu.Unlock()
					for name, one := range told {
						if one.standing() == "" {
							t.Errorf("%s has no alarm", name)
						}
					}

					p.SetAnswer(nil)
					until(t, 30*time.Second, "first mail", func() bool { return len(p.Received()) > 0 })
					c.done(ids, time.Minute)
					c.exactlyOnce(ids)
					until(t, 2*barredEvery, "no alarm", func() bool {
						for _, one := range told {
							if one.standing() != "" {
								return false
							}
						}
						return true
					})
					for _, a := range agents {
						shutdown(t, a, time.Minute)
					}
				})
			})
		}
	}
}

func probes(agents []*Agent) (n int64) {
	for _, a := range agents {
		n += a.Stats().Probes.Load()
	}
	return n
}

// A primary that refuses some of the nodes stops none of the others, and those that it
// refuses go on trying at their own pace, and say so.
func TestRefusedNodesDoNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
			switch {
			case stage == deliverytest.Hello && !strings.Contains(line, "c.backup.test"):
				return "554 5.7.1 your address is blocked"
			case stage == deliverytest.Data:
				time.Sleep(time.Second)
			}
			return ""
		}}
		c := newCluster(t, p)
		defer c.stop()
		told := map[fsm.NodeName]*refusals{"a": {}, "b": {}, "c": {}}
		c.barred = func(n fsm.NodeName) bool { return told[n].standing() != "" }
		var agents []*Agent
		for rank, name := range []fsm.NodeName{"a", "b", "c"} {
			agents = append(agents, c.agent(name, rank, 3, func(config *Config) { config.RefusedAlarm = told[name].tell }))
		}
		ids := c.acceptN(1500)
		c.done(ids, 15*time.Minute)
		c.exactlyOnce(ids)
		c.mu.Lock()
		if n := len(c.hops); n > 150 {
			t.Errorf("%d reports of the next hop", n)
		}
		c.mu.Unlock()
		before := p.Sessions()
		time.Sleep(time.Hour)
		if n := p.Sessions() - before; n < 2*30 || n > 2*150 {
			t.Errorf("%d connections in an hour with nothing to deliver", n)
		}
		if told["a"].standing() == "" || told["b"].standing() == "" || told["c"].n != 0 {
			t.Errorf("alarms %q, %q, %d", told["a"].standing(), told["b"].standing(), told["c"].n)
		}
		p.SetAnswer(nil)
		until(t, 2*barredEvery, "no alarm", func() bool { return told["a"].standing()+told["b"].standing() == "" })
		for _, a := range agents {
			shutdown(t, a, time.Minute)
		}
	})
}

// A primary that takes so many connections and says 421 to the next one refuses nobody:
// no alarm, and it stays up. The leader hears of it.
func TestConnectionsMaxOfThePrimaryIsNoRefusal(t *testing.T) {
	const limit = 3
	var open atomic.Int64
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, _ string) string {
		switch {
		case stage == deliverytest.Banner && open.Load() > limit:
			return "421 4.7.0 too many connections"
		case stage == deliverytest.Data:
			time.Sleep(time.Second)
		}
		return ""
	}}
	var told refusals
	change := func(config *Config) {
		config.RefusedAlarm = told.tell
		dial := config.Dial
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dial(ctx, network, address)
			if err == nil {
				open.Add(1)
				nc = &counted{Conn: nc, open: &open}
			}
			return nc, err
		}
	}
	bubbleWith(t, p, nil, change, func(c *cluster, a *Agent) {
		ids := c.acceptN(600)
		c.done(ids, 30*time.Minute)
		c.exactlyOnce(ids)
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range c.hops {
			if !r.Up {
				t.Errorf("reported: %+v", r)
			}
		}
		if told.n != 0 {
			t.Errorf("%d alarms", told.n)
		}
		if c.lost == 0 {
			t.Error("the leader heard of nothing")
		}
	})
}

// A counted connection is counted until it is closed.
type counted struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}
