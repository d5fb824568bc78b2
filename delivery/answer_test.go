package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// onDemand is a cluster whose primary calls for its mail, and can be reached by nobody.
func onDemand(t *testing.T, p *deliverytest.Primary, test func(c *cluster, a *Agent)) {
	bubbleWith(t, p, func(c *cluster) {
		c.apply("leader", fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, OnDemand: true}})
	}, func(config *Config) {
		config.Dial = func(context.Context, string, string) (net.Conn, error) {
			t.Error("dialled for mail that waits to be called for")
			return nil, errors.New("no such host")
		}
	}, test)
}

// call has the primary call for its mail: it begins TLS as the client, and is the server
// then. The channel gets what Answer returned.
func (c *cluster) call(a *Agent) <-chan error {
	c.t.Helper()
	ours, theirs := deliverytest.Pipe()
	pair := deliverytest.NewAuthority(c.t, "authority", time.Now()).Issue(c.t, deliverytest.Certificate{Names: []string{"mx1.backup.test"}})
	secured := tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{pair}})
	go func() {
		caller := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true})
		if err := caller.Handshake(); err != nil {
			c.t.Errorf("handshake: %v", err)
		}
		c.primary.Serve(caller)
	}()
	if err := secured.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- a.Answer(Call{Conn: ours, TLS: secured, From: netip.MustParseAddr("203.0.113.7"), Domains: []mail.Domain{"unknown.test", testDomain}})
	}()
	return ended
}

// TestMailWaitsToBeCalledFor: however long it takes, nobody connects, probes or reports
// anything until the primary calls; then all of it goes over the one connection, octet
// for octet, each dot under its renewal.
func TestMailWaitsToBeCalledFor(t *testing.T) {
	p := &deliverytest.Primary{Extensions: []string{"PIPELINING", "8BITMIME", "SIZE 0", "STARTTLS"}}
	onDemand(t, p, func(c *cluster, a *Agent) {
		ids := c.acceptN(150)
		time.Sleep(3 * time.Hour)
		if err := <-c.call(a); err != nil {
			t.Error(err)
		}
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		if len(c.hops) > 0 || p.Sessions() != 1 {
			t.Errorf("%d reports of a next hop, %d connections", len(c.hops), p.Sessions())
		}
		if n := a.Stats().Answered.Load(); n != 1 || a.Stats().Probes.Load() != 0 {
			t.Errorf("%d calls answered, %d probes", n, a.Stats().Probes.Load())
		}
		// Who calls when nothing waits is spoken to, and let go.
		if err := <-c.call(a); err != nil {
			t.Error(err)
		}
		if p.Sessions() != 2 || len(p.Received()) != 150 {
			t.Errorf("%d connections, %d messages", p.Sessions(), len(p.Received()))
		}
	})
}

// TestACallThatBreaksOff: wherever the connection ends, what was not taken goes over the
// next one, and only a dot without a reply makes a second copy.
func TestACallThatBreaksOff(t *testing.T) {
	for _, stage := range []string{
		deliverytest.Banner, deliverytest.Hello, deliverytest.Mail, deliverytest.Rcpt, deliverytest.Data, deliverytest.Body, deliverytest.Dot, deliverytest.Quit,
	} {
		for _, how := range []string{deliverytest.Drop, deliverytest.Hang} {
			t.Run(stage+how, func(t *testing.T) {
				p := &deliverytest.Primary{}
				onDemand(t, p, func(c *cluster, a *Agent) {
					ids := c.acceptN(10)
					came := 0
					p.SetAnswer(func(s, _ string) string {
						if s == stage {
							if came++; came == 4 || stage == deliverytest.Banner || stage == deliverytest.Hello || stage == deliverytest.Quit {
								return how
							}
						}
						return ""
					})
					<-c.call(a)
					p.SetAnswer(nil)
					first := len(p.Received())
					if stage != deliverytest.Quit && first >= 10 || stage == deliverytest.Quit && first != 10 {
						t.Errorf("%d arrived over the first connection", first)
					}
					time.Sleep(30 * time.Minute) // what is in doubt waits
					<-c.call(a)
					c.done(ids, time.Minute)
					copies := len(p.Received()) - len(ids)
					inDoubt := 0
					if stage == deliverytest.Dot {
						inDoubt = 1
					}
					if copies != inDoubt {
						t.Errorf("%d second copies, want %d", copies, inDoubt)
					}
					if inDoubt == 0 {
						c.exactlyOnce(ids)
					}
				})
			})
		}
	}
}

// TestACallGoesOnOverATrouble: a leader that is away for a moment, and a renewal that is
// lost, end no call.
func TestACallGoesOnOverATrouble(t *testing.T) {
	p := &deliverytest.Primary{}
	onDemand(t, p, func(c *cluster, a *Agent) {
		ids := c.acceptN(200)
		pulls, renewals := 0, 0
		c.mu.Lock()
		c.fault = func(call string, _ bool, _ fsm.NodeName) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			switch call {
			case "pull":
				if pulls++; pulls == 1 || pulls > 4 && pulls < 8 {
					return errLost
				}
			case "renew":
				if renewals++; renewals%3 == 0 {
					return errLost
				}
			}
			return nil
		}
		c.mu.Unlock()
		if err := <-c.call(a); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.fault = nil
		c.mu.Unlock()
		// A pull whose answer was lost has granted what nobody delivers: its lease ends.
		time.Sleep(time.Hour)
		<-c.call(a)
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
	})
}

// TestACallAtAShutdown: what the agent has begun is reported, and nobody is answered any
// more.
func TestACallAtAShutdown(t *testing.T) {
	p := &deliverytest.Primary{}
	onDemand(t, p, func(c *cluster, a *Agent) {
		ids := c.acceptN(50)
		p.SetAnswer(func(stage, _ string) string {
			if stage == deliverytest.Dot {
				time.Sleep(time.Second)
			}
			return ""
		})
		ended := c.call(a)
		until(t, time.Minute, "some arrive", func() bool { return len(p.Received()) > 3 })
		shutdown(t, a, time.Minute)
		<-ended
		arrived := len(p.Received())
		if arrived == 50 {
			t.Error("all arrived")
		}
		if err := <-c.call(a); !errors.Is(err, ErrShutDown) {
			t.Errorf("after the shutdown: %v", err)
		}
		b := c.agent("b", 1, 3, nil)
		<-c.call(b)
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		shutdown(t, b, time.Minute)
	})
}
