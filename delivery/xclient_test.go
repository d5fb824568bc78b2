package delivery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// putXClient has the next hop told whose each message is.
func putXClient(c *cluster, is bool) {
	c.apply("leader", fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}, XClient: is}})
}

// TestTheNextHopIsToldTheClient: each message comes in the name of its own client, and
// one whose client is not known in nobody's, never in that of the message before.
func TestTheNextHopIsToldTheClient(t *testing.T) {
	with := append(slices.Clone(extensions), "XCLIENT NAME ADDR PROTO HELO")
	for _, test := range []struct {
		name    string
		offers  []string
		on      bool
		clients int // of the messages below
	}{
		{"offered and wanted", with, true, 3},
		{"not wanted", with, false, 0},
		{"not offered", extensions, true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &deliverytest.Primary{Extensions: test.offers, Answer: func(at, line string) string {
				if at == deliverytest.Rcpt && strings.Contains(line, "nobody@") {
					return "550 5.1.1 nobody" // the transaction stays open
				}
				return ""
			}}
			bubbleWith(t, p, func(c *cluster) { putXClient(c, test.on) }, nil, func(c *cluster, a *Agent) {
				c.acceptTraced(mail.Trace{Client: netip.MustParseAddr("198.51.100.9")}, "x\r\n", "nobody@example.test")
				traces := []mail.Trace{
					{Hello: "mail.one.test", Client: netip.MustParseAddr("198.51.100.1"), Protocol: "ESMTPS"},
					{Hello: "[IPv6:2001:db8::2]", Client: netip.MustParseAddr("2001:db8::2"), Protocol: "SMTP"},
					{}, // a report of our own
				}
				want := []string{
					"XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.1 PROTO=ESMTP HELO=mail.one.test",
					"XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::2 PROTO=SMTP HELO=[IPv6:2001:db8::2]",
					"XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PROTO=SMTP HELO=[UNAVAILABLE]",
				}
				var ids []mail.QueueID
				for i, trace := range traces {
					ids = append(ids, c.acceptTraced(trace, fmt.Sprintf("%d\r\n", i), "bob@example.test"))
				}
				c.done(ids, time.Minute)
				c.exactlyOnce(ids)
				for i, r := range p.Received() {
					if i >= test.clients {
						want[i] = ""
					}
					if r.Client != want[i] {
						t.Errorf("message %d of client %q, want %q", i, r.Client, want[i])
					}
				}
				if n := a.Stats().ConnectionsLost.Load(); n > 0 {
					t.Errorf("%d connections lost", n)
				}
			})
		})
	}
}

// TestClientThatTheNextHopDoesNotWant: the mail waits, that of others goes on, and
// nothing is ever sent in another's name.
func TestClientThatTheNextHopDoesNotWant(t *testing.T) {
	bad := "198.51.100.66"
	for _, stage := range []string{deliverytest.XClient, deliverytest.Hello} {
		for _, reply := range []string{"550 5.7.1 go away", "450 4.7.1 later", "421 4.7.0 bye", "250 2.0.0 what", deliverytest.Drop, deliverytest.Hang} {
			if stage == deliverytest.Hello && strings.HasPrefix(reply, "250") {
				continue // which is a greeting
			}
			t.Run(stage+" "+reply, func(t *testing.T) {
				refused := false
				p := &deliverytest.Primary{Extensions: append(slices.Clone(extensions), "XCLIENT ADDR"), Answer: func(at, line string) string {
					if at == deliverytest.XClient {
						refused = strings.Contains(line, bad)
					}
					if at == stage && refused {
						refused = false
						return reply
					}
					return ""
				}}
				bubbleWith(t, p, func(c *cluster) { putXClient(c, true) }, nil, func(c *cluster, _ *Agent) {
					unwanted := c.acceptTraced(mail.Trace{Client: netip.MustParseAddr(bad)}, "bad\r\n", "bob@example.test")
					good := c.acceptTraced(mail.Trace{Client: netip.MustParseAddr("198.51.100.1")}, "good\r\n", "bob@example.test")
					c.done([]mail.QueueID{good}, time.Hour)
					if m := c.message(unwanted); m.State() != fsm.RecipientQueued || m.PossibleDuplicate {
						t.Errorf("the other is %v, possible duplicate %v", m.State(), m.PossibleDuplicate)
					}
					for _, r := range p.Received() {
						if r.Client != "XCLIENT ADDR=198.51.100.1" {
							t.Errorf("%q came in the name of %q", r.Octets, r.Client)
						}
					}
				})
			})
		}
	}
}
