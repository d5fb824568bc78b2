package delivery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// single has one connection take all mail, in leases as large as there are.
func single(config *Config) {
	n := config.Queue.(node)
	n.nodes = 1 // of several only one would have it, and lease before it connects
	config.Queue, config.ConnectionsMax = n, 1
}

// saidMailFor counts how often MAIL was said for message n.
func saidMailFor(p *deliverytest.Primary, n int) (times int) {
	for _, line := range p.Lines() {
		if strings.HasPrefix(line, fmt.Sprintf("MAIL FROM:<sender%d@", n)) {
			times++
		}
	}
	return times
}

// first answers the first time only.
func first(stage string, answer func() string) func(string, string) string {
	var mu sync.Mutex
	done := false
	return func(at, _ string) string {
		mu.Lock()
		mine := at == stage && !done
		done = done || mine
		mu.Unlock()
		if mine {
			return answer()
		}
		return ""
	}
}

// A lease of k messages costs k turns and the few of the beginning.
func TestOneTurnPerMessage(t *testing.T) {
	const count = 40
	p := &deliverytest.Primary{Extensions: extensions}
	var mu sync.Mutex
	var connections []*deliverytest.Turns
	bubbleWith(t, p, nil, func(config *Config) {
		single(config)
		config.Dial = func(context.Context, string, string) (net.Conn, error) {
			client, server := deliverytest.Pipe()
			turns := deliverytest.NewTurns(server)
			mu.Lock()
			connections = append(connections, turns)
			mu.Unlock()
			go p.Serve(turns)
			return client, nil
		}
	}, func(c *cluster, a *Agent) {
		ids := c.acceptN(count)
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		mu.Lock()
		defer mu.Unlock()
		if len(connections) != 1 {
			t.Fatalf("%d connections", len(connections))
		}
		if n := connections[0].Count(); n > count+3 { // banner, EHLO, the first envelope
			t.Errorf("%d turns for %d messages", n, count)
		}
		if n := a.Stats().Pipelined.Load(); n != count-1 {
			t.Errorf("%d pipelined", n)
		}
		if n := a.Stats().Attempts.Load(); n != count {
			t.Errorf("%d attempts", n)
		}
	})
}

// An operator holds the next message while its MAIL, RCPT and DATA are out, and
// the reply to the dot before them is not.
func TestPipelinedAndStopped(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
		p.SetAnswer(first(deliverytest.Dot, func() string {
			time.Sleep(40 * time.Second)
			return ""
		}))
		ids := c.acceptN(3)
		until(t, time.Minute, "a dot", func() bool { return len(p.Received()) == 1 })
		c.apply("operator", fsm.Hold{ID: ids[1]})
		until(t, 2*time.Minute, "stopped", func() bool { return a.Stats().Stopped.Load() == 1 })
		if n := a.Stats().Pipelined.Load(); n != 1 {
			t.Fatalf("%d pipelined", n)
		}
		c.done([]mail.QueueID{ids[0], ids[2]}, time.Minute)
		c.exactlyOnce([]mail.QueueID{ids[0], ids[2]})
		if m := c.message(ids[1]); saidMailFor(p, 1) != 1 || m.Recipients[0].State != fsm.RecipientHeld || m.Parts[0].Attempts != 0 {
			t.Errorf("MAIL %d times, %+v", saidMailFor(p, 1), m)
		}
		if n := a.Stats().ConnectionsLost.Load() + a.Stats().PipeliningFailed.Load(); n != 0 {
			t.Errorf("%d connections lost, or pipelining failed: we closed it", n)
		}
		c.apply("operator", fsm.Release{ID: ids[1]})
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
	})
}

// The renewal that permits a dot says stop to the next message: of that nothing is
// said at all, and the connection goes on.
func TestStoppedIsNotPipelined(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, func(c *cluster) { failing(c, "renew", false) }, single, func(c *cluster, a *Agent) {
		ids := c.acceptN(3)
		time.Sleep(5 * time.Second)
		c.apply("operator", fsm.Hold{ID: ids[1]})
		healed(c)
		c.done([]mail.QueueID{ids[0], ids[2]}, time.Minute)
		c.exactlyOnce([]mail.QueueID{ids[0], ids[2]})
		if s := a.Stats(); saidMailFor(p, 1) != 0 || s.Stopped.Load() != 1 || s.Connections.Load() != 1 {
			t.Errorf("MAIL %d times, %d stopped, %d connections", saidMailFor(p, 1), s.Stopped.Load(), s.Connections.Load())
		}
	})
}

// The right to the next message ends while its commands are out: before its turn,
// or before its dot, with the content already written.
func TestPipelinedAndTheRightEnds(t *testing.T) {
	for _, wait := range []time.Duration{LeaseDuration + time.Second, LeaseDuration/2 + 5*time.Second} {
		p := &deliverytest.Primary{Extensions: extensions}
		bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
			p.SetAnswer(first(deliverytest.Dot, func() string {
				failing(c, "renew", false)
				time.Sleep(wait)
				return ""
			}))
			ids := c.acceptN(2)
			until(t, 3*time.Minute, "given up", func() bool { return a.Stats().RightsEnded.Load() == 1 })
			if n := a.Stats().Pipelined.Load(); n != 1 {
				t.Fatalf("%d pipelined", n)
			}
			if n := len(p.Received()); n != 1 {
				t.Fatalf("%d dots", n)
			}
			healed(c)
			c.done(ids, 15*time.Minute)
			c.exactlyOnce(ids)
		})
	}
}

// The content of the next message does not read to its end: its 354 is answered
// by the end of the connection.
func TestPipelinedAndUnreadable(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
		c.mu.Lock()
		c.openBody = func(id mail.QueueID, content []byte) (io.ReadSeekCloser, error) {
			if id == c.order[1] {
				return broken{strings.NewReader(string(content[:5]))}, nil
			}
			return openContent{bytes.NewReader(content)}, nil
		}
		c.mu.Unlock()
		ids := c.acceptN(3)
		c.done([]mail.QueueID{ids[0], ids[2]}, time.Minute)
		if n := a.Stats().Pipelined.Load(); n == 0 {
			t.Error("not pipelined")
		}
		if m := c.message(ids[1]); m.Recipients[0].Reply != replyMissing {
			t.Errorf("%+v", m.Recipients[0])
		}
		c.mu.Lock()
		c.openBody = nil
		c.mu.Unlock()
		c.done(ids, 2*time.Minute)
		c.exactlyOnce(ids)
	})
}

// absent has no content for one message until its second call, which comes late.
type absent struct {
	Queue
	id    func() mail.QueueID
	asked *sync.Map
}

func (q absent) OpenBody(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	if ref.ID == q.id() {
		if _, again := q.asked.LoadOrStore(ref.ID, true); !again {
			<-ctx.Done()
			return nil, errors.New("did not arrive")
		}
	}
	return q.Queue.OpenBody(ctx, ref)
}

// The content of the next message is not here: the dot hardly waits for it, and
// the message is begun in its own turn, on the same connection.
func TestContentOfTheNextIsNotHere(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	var cl *cluster
	bubbleWith(t, p, func(c *cluster) { cl = c }, func(config *Config) {
		single(config)
		config.Queue = absent{config.Queue, func() mail.QueueID {
			cl.mu.Lock()
			defer cl.mu.Unlock()
			return cl.order[1]
		}, &sync.Map{}}
	}, func(c *cluster, a *Agent) {
		start := time.Now()
		ids := c.acceptN(3)
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		if s := a.Stats(); s.Pipelined.Load() != 1 || s.Connections.Load() != 1 || s.BodiesMissing.Load() != 0 {
			t.Errorf("%d pipelined, %d connections, %d bodies missing", s.Pipelined.Load(), s.Connections.Load(), s.BodiesMissing.Load())
		}
	})
}

// The reply to a dot is 421: that message has been tried, the one behind it has
// not, and nothing is held against it.
func TestPipelinedBehind421(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
		p.SetAnswer(first(deliverytest.Dot, func() string { return "421 4.3.2 going down" }))
		ids := c.acceptN(2)
		until(t, time.Minute, "the 421", func() bool { return a.Stats().Deferred.Load() == 2 })
		time.Sleep(500 * time.Millisecond)
		m, next := c.message(ids[0]), c.message(ids[1])
		if m.Parts[0].Attempts != 1 || m.Recipients[0].Reply.Code != 421 || m.PossibleDuplicate {
			t.Errorf("%+v", m)
		}
		if saidMailFor(p, 1) != 1 || next.Parts[0].Attempts != 0 || next.Recipients[0].Reply.Code != 0 || next.PossibleDuplicate {
			t.Errorf("MAIL %d times, %+v", saidMailFor(p, 1), next)
		}
		c.done([]mail.QueueID{ids[1]}, time.Minute)
		c.done(ids, 5*time.Minute)
	})
}

// The connection ends behind a dot whose reply was not read: one message is in
// doubt, the other was not tried.
func TestPipelinedAndInDoubt(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions}
	bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
		p.SetAnswer(first(deliverytest.Dot, func() string { return deliverytest.Drop }))
		ids := c.acceptN(3)
		c.done(ids[1:], time.Minute)
		c.exactlyOnce(ids[1:])
		m, next := c.message(ids[0]), c.message(ids[1])
		if a.Stats().InDoubt.Load() != 1 || !m.PossibleDuplicate || m.Parts[0].DoubtUntil == 0 {
			t.Errorf("%+v", m)
		}
		if next.PossibleDuplicate || next.Parts[0].Attempts != 1 {
			t.Errorf("%+v", next)
		}
	})
}

// Primaries that offer PIPELINING and cannot take a command behind a dot: nothing
// is lost, nothing comes twice, it costs one connection, and after that we do
// without, for a while.
func TestPrimaryBrokenBehindADot(t *testing.T) {
	for name, p := range map[string]*deliverytest.Primary{
		"loses what is behind":   {Answer: at(deliverytest.Dot, deliverytest.Forget)},
		"enforces its turn":      {Answer: at(deliverytest.Dot, deliverytest.Enforce)},
		"does not see the dot":   {DotAlone: true},
		"loses it behind MAIL":   {Answer: afterDot(deliverytest.Mail, deliverytest.Forget)},
		"does not know DATA":     {Answer: afterDot(deliverytest.Data, "503 5.5.1 MAIL first")},
		"refuses what is behind": {Answer: afterDot(deliverytest.Mail, "503 5.5.1 one thing at a time")},
	} {
		t.Run(name, func(t *testing.T) {
			p.Extensions = extensions
			bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
				ids := c.acceptN(20)
				c.done(ids, 30*time.Minute)
				c.exactlyOnce(ids)
				s := a.Stats()
				if s.PipeliningFailed.Load() != 1 || s.Pipelined.Load() > 1 || s.ConnectionsLost.Load() != 1 {
					t.Errorf("failed %d times, %d pipelined, %d connections lost", s.PipeliningFailed.Load(), s.Pipelined.Load(), s.ConnectionsLost.Load())
				}
				for _, id := range ids {
					if m := c.message(id); m.Parts[0].Attempts > 1 && !p.DotAlone && name != "enforces its turn" {
						t.Errorf("%d attempts counted", m.Parts[0].Attempts)
					}
				}
				p.SetAnswer(nil)
				time.Sleep(plainTime)
				ids = append(ids, c.acceptN(5)...)
				if p.DotAlone { // Once more it costs a connection, and no more.
					c.done(ids, 30*time.Minute)
					c.exactlyOnce(ids)
					return
				}
				c.done(ids, time.Minute)
				c.exactlyOnce(ids)
				if n := s.Pipelined.Load(); n < 4 {
					t.Errorf("%d pipelined when it was over", n)
				}
			})
		})
	}
}

// afterDot answers, once, a stage of what came in one go with the first dot.
func afterDot(stage, answer string) func(string, string) string {
	var mu sync.Mutex
	dots, done := 0, false
	return func(at, _ string) string {
		mu.Lock()
		defer mu.Unlock()
		if at == deliverytest.Dot {
			dots++
		}
		if at == stage && dots == 1 && !done {
			done = true
			return answer
		}
		return ""
	}
}

// A message that ends each connection at its MAIL, behind the dot of another too.
func TestPipelinedMessageThatEndsConnections(t *testing.T) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
		if stage == deliverytest.Mail && strings.Contains(line, "<sender3@") {
			return deliverytest.Drop
		}
		return ""
	}}
	bubbleWith(t, p, nil, single, func(c *cluster, a *Agent) {
		ids := c.acceptN(10)
		until(t, 40*time.Second, "the others delivered", func() bool { return c.states(ids)[fsm.RecipientDelivered] == 9 })
		p.SetAnswer(nil)
		c.done(ids, 10*time.Minute)
		c.exactlyOnce(ids)
	})
}

// A primary that does anything, at any stage, now and then. However it answers
// what was pipelined: nothing is lost, nothing arrives cut or empty, and there
// are no more copies than doubts.
func TestPipeliningWithAnErraticPrimary(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex
			answers := []string{
				deliverytest.Drop, deliverytest.Hang, deliverytest.Forget, deliverytest.Scold, deliverytest.Enforce, "421 4.3.2 bye", "451 4.3.0 later",
				"250 fine\r\n250 fine", "250 fine\r\n421 bye", "354 go on", "503 5.5.1 what?", "garbage",
			}
			p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, _ string) string {
				mu.Lock()
				defer mu.Unlock()
				switch stage {
				case deliverytest.Mail, deliverytest.Rcpt, deliverytest.Data, deliverytest.Dot:
				default:
					return ""
				}
				if random.IntN(12) > 0 {
					return ""
				}
				answer := answers[random.IntN(len(answers))]
				switch {
				case stage == deliverytest.Data && answer == "354 go on":
					return "" // Without a recipient it would be the lone dot's time.
				case stage != deliverytest.Dot && (answer == deliverytest.Scold || answer == deliverytest.Enforce):
					return "" // It would break its word within a transaction.
				}
				return answer
			}}
			bubbleWith(t, p, nil, func(config *Config) {
				config.ConnectionsMax = 3
			}, func(c *cluster, a *Agent) {
				ids := c.acceptN(40)
				for range 20 { // So that it is pipelined to again and again.
					time.Sleep(time.Minute)
					a.plain.mu.Lock()
					clear(a.plain.till)
					a.plain.mu.Unlock()
				}
				p.SetAnswer(nil)
				c.done(ids, 12*time.Hour)
				copies := map[mail.QueueID]int{}
				for _, r := range p.Received() {
					id := queueIDOf(t, r.Octets)
					if want := string(traceFields(id, c.message(id).Envelope, "")) + string(c.bodies[id]); string(r.Octets) != want {
						t.Errorf("%s is altered: %q", id, r.Octets)
					}
					if strings.HasPrefix(r.Reply, "250") {
						copies[id]++
					}
				}
				doubts := int(a.Stats().InDoubt.Load())
				for _, id := range ids {
					if copies[id] == 0 {
						t.Errorf("%s never arrived: %+v", id, c.message(id).Recipients)
					}
					doubts -= max(0, copies[id]-1)
				}
				if doubts < 0 {
					t.Errorf("%d copies more than there were doubts", -doubts)
				}
			})
		})
	}
}

func TestPlainHopsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plainHops
		hop := func(n int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 25)
		}
		for n := range 3 * plainMax {
			p.add(hop(n), time.Now())
			time.Sleep(time.Second)
		}
		if n := len(p.till); n != plainMax {
			t.Errorf("%d remembered", n)
		}
		if p.has(hop(2*plainMax-1), time.Now()) || !p.has(hop(2*plainMax), time.Now()) || p.has(hop(9999), time.Now()) {
			t.Error("not the oldest was forgotten")
		}
		time.Sleep(plainTime)
		if p.has(hop(3*plainMax-1), time.Now()) {
			t.Error("for ever")
		}
	})
}
