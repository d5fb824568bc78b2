package delivery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// slowly answers each final dot after a second.
func slowly(stage, _ string) string {
	if stage == deliverytest.Dot {
		time.Sleep(time.Second)
	}
	return ""
}

// TestRegressionNewWayCountsAtOnce: where a domain's mail goes, and what its next hop must show, is
// looked up at each attempt: an administrator changes it while a connection is open, over
// which there is a whole queue to deliver. No more than the message whose dot is out goes
// the old way.
//
// It holds this defect: a connection that was open went on to the old primary after
// domain put --to, and in the clear after --tls require, as long as mail was due.
func TestRegressionNewWayCountsAtOnce(t *testing.T) {
	const newAt = "192.0.2.11:25"
	old := fsm.Domain{Name: testDomain, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}}
	elsewhere, secured, byMX := old, old, old
	elsewhere.Targets = []fsm.Target{{Host: "192.0.2.11", Port: 25}}
	secured.TLS = fsm.TLSPolicy{Mode: fsm.TLSRequire}
	byMX.Targets, byMX.MX = nil, true
	for name, test := range map[string]struct {
		becomes fsm.Domain
		arrives bool // by the new way
	}{
		"another target":                      {elsewhere, true},
		"MX in place of a target":             {byMX, false}, // and nobody knows any
		"TLS that the next hop does not show": {secured, false},
	} {
		for _, offered := range [][]string{extensions, nil} { // with pipelining and without
			for _, few := range []bool{true, false} { // all that is due is leased already, or not
				t.Run(fmt.Sprintf("%s, %d extensions, few %v", name, len(offered), few), func(t *testing.T) {
					p, other := &deliverytest.Primary{Extensions: offered, Answer: slowly}, &deliverytest.Primary{Extensions: offered}
					change := func(config *Config) {
						config.Router = route.New(route.Config{Resolver: &mxZone{mx: func() ([]route.MX, error) { return nil, route.ErrNotFound }}})
						dial := config.Dial
						config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
							if address != newAt {
								return dial(ctx, network, address)
							}
							client, server := deliverytest.Pipe()
							go other.Serve(server)
							return client, nil
						}
						config.TLSPolicy = func(mail.Domain) *tlspolicy.Policy {
							if test.becomes.TLS.Mode == fsm.TLSRequire && len(p.Received()) > 0 {
								return &tlspolicy.Policy{Mode: tlspolicy.Require}
							}
							return nil
						}
					}
					bubbleWith(t, p, func(c *cluster) { c.apply("operator", fsm.PutDomain{Domain: old}) }, change, func(c *cluster, a *Agent) {
						other.OnDot(c.checkDot)
						count := 200
						if few {
							count = 6
						}
						ids := c.acceptN(count)
						until(t, time.Minute, "two have arrived", func() bool { return len(p.Received()) >= 2 })
						time.Sleep(500 * time.Millisecond)
						connections := int(a.Stats().Connections.Load())
						before := len(p.Received())
						c.apply("operator", fsm.PutDomain{Domain: test.becomes})
						time.Sleep(10 * time.Minute)
						if n := len(p.Received()); n > before+connections {
							t.Errorf("%d messages went the old way, %d before it was changed", n, before)
						}
						if n := len(other.Received()); test.arrives != (n+len(p.Received()) == count) || !test.arrives && n > 0 {
							t.Errorf("%d messages went the new way", n)
						}
						if !test.arrives {
							return
						}
						c.done(ids, time.Minute)
						for _, r := range other.Received() {
							if slices.ContainsFunc(p.Received(), func(o deliverytest.Received) bool { return queueIDOf(t, o.Octets) == queueIDOf(t, r.Octets) }) {
								t.Errorf("%s went both ways", queueIDOf(t, r.Octets))
							}
						}
					})
				})
			}
		}
	}
}

// TestRegressionClientsOfTheLastLease: the next hop takes its time, and all mail that is due is
// leased meanwhile: still each message comes in its own client's name.
//
// It holds this defect: when all mail of a domain was leased, the messages behind the
// first one came in the name of the first one's client.
func TestRegressionClientsOfTheLastLease(t *testing.T) {
	p := &deliverytest.Primary{Extensions: append(slices.Clone(extensions), "XCLIENT NAME ADDR PROTO HELO"), Answer: slowly}
	bubbleWith(t, p, func(c *cluster) { putXClient(c, true) }, nil, func(c *cluster, a *Agent) {
		var ids []mail.QueueID
		for i := range 5 {
			trace := mail.Trace{Client: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), Protocol: "ESMTP", Hello: "client.test"}
			ids = append(ids, c.acceptTraced(trace, fmt.Sprintf("%d\r\n", i), "bob@example.test"))
		}
		c.done(ids, time.Minute)
		c.exactlyOnce(ids)
		for _, r := range p.Received() {
			i := slices.Index(ids, queueIDOf(t, r.Octets))
			if want := fmt.Sprintf("XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.%d PROTO=ESMTP HELO=client.test", i+1); r.Client != want {
				t.Errorf("message %d of client %q, want %q", i, r.Client, want)
			}
		}
	})
}
