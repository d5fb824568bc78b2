package delivery

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Call is a connection over which a primary has called for its mail (RFC 2645), and on
// which it is the server from now on.
type Call struct {
	Conn net.Conn  // what lies below TLS
	TLS  *tls.Conn // over Conn; nothing that came over it is kept elsewhere
	From netip.Addr
	// Domains are those whose mail goes over it, in their order.
	Domains []mail.Domain
}

// calledPullsMax is how many pulls in a row may give nothing, although there is due mail,
// before a caller is told that this is all: a leader may just be changing, or the
// cluster have enough connections for the moment. With the waits between them that is
// about fifteen seconds.
const calledPullsMax = 5

// ErrShutDown: the agent delivers nothing any more.
var ErrShutDown = errors.New("delivery is shut down")

// Answer delivers what is due for the domains of a call, under leases as everywhere:
// only who has called is different. It waits for the primary's banner, and returns when
// there is nothing more, or the connection ended; then it is closed, and what became of
// each message is reported. The domains' TLS policies are about whom we connect to, and
// say nothing here. It is one connection of this node's, whatever others it has: where a
// domain has next hops as well, there may be one more per node than its ceiling.
func (a *Agent) Answer(c Call) error {
	if !a.join() {
		_ = c.Conn.Close()
		return ErrShutDown
	}
	defer a.running.Done()
	conn, err := smtpclient.Open(a.work, c.Conn, smtpclient.Options{Hello: a.c.Hostname, Secured: c.TLS, Timeouts: a.c.Timeouts})
	if err != nil {
		a.stats.ConnectFailed.Add(1)
		return err
	}
	a.stats.Connections.Add(1)
	a.stats.Answered.Add(1)
	// A caller's port is another at each call.
	at := route.Hop{Host: conn.Name(), Address: netip.AddrPortFrom(c.From, 0)}
	var finish []func()
	for _, d := range c.Domains {
		w, ok := a.c.Queue.WorkFor(d)
		if !ok || !conn.Usable() {
			continue
		}
		h := newHop(a, w)
		h.called, h.workers = &called{h: h}, 1
		if w.Domain.OnDemand {
			h.welcomed() // nobody else would take back what was said of an earlier call
		}
		finish = append(finish, h.exhaust(conn, at, w.Domain, Lease{}, 0))
	}
	_ = conn.Quit(a.work)
	for _, f := range finish {
		f()
	}
	return nil
}

// join has Shutdown wait for who calls it, until running.Done. False: it has begun.
func (a *Agent) join() bool {
	a.joining.Lock()
	defer a.joining.Unlock()
	if a.work == nil || a.work.Err() != nil {
		return false
	}
	a.running.Add(1)
	return true
}

// A called is what is different about a hop that has called us.
type called struct {
	h     *hop
	empty int // pulls in a row that gave nothing
}

// again waits, where a pull gave nothing, and reports whether to ask once more. It is
// for one goroutine.
func (c *called) again() bool {
	w, ok := c.h.a.c.Queue.WorkFor(c.h.name)
	if !ok || w.Due == 0 || c.empty >= calledPullsMax {
		return false
	}
	c.empty++
	c.h.mu.Lock()
	wait := c.h.a.jitter(c.h.empty.grow())
	c.h.mu.Unlock()
	return sleep(c.h.a.work, wait)
}
