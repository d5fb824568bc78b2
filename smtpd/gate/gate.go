package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Config is what a Gate needs to know.
type Config struct {
	Hostname   string      // first word of the greeting and of the EHLO reply
	Extensions []string    // EHLO keywords, STARTTLS aside
	TLS        *tls.Config // nil: STARTTLS is not offered
	// AskCertificate is asked at each STARTTLS whether the client is to be asked for a
	// certificate, which is not verified: Conn.ClientKey says what it showed. It must
	// not block. Nil asks nobody.
	AskCertificate func() bool
	// Refuse is asked once per connection, when the greeting is due. A reply
	// (a 421) is given instead of the greeting and the connection closed. It
	// must not block. May be nil.
	Refuse func() *mail.Reply
	// Turn answers ETRN (RFC 1985), whose argument is as the client wrote it. Nil:
	// ETRN is not offered.
	Turn   func(c *Conn, argument string) mail.Reply
	Limits Limits
	// Exempt networks are not counted per client. Loopback never is.
	Exempt []netip.Prefix
	Logger *slog.Logger
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
}

// Stats counts what the gate did since it was made.
type Stats struct {
	Connections    atomic.Int64  // open now, refused ones aside
	Accepted       atomic.Uint64 // connections taken
	Crowded        atomic.Uint64 // refused by a connection limit
	NotReady       atomic.Uint64 // refused by Config.Refuse
	HandshakeFails atomic.Uint64
	Timeouts       atomic.Uint64 // closed for a stall or a slow body
	Aborted        atomic.Uint64 // connections that ended inside DATA
	Silent         atomic.Uint64 // closed without a reply that was due
}

// A Gate holds what all its listeners have in common: the limits and the open
// connections.
type Gate struct {
	config  Config
	limits  Limits
	log     *slog.Logger
	stats   Stats
	buffers sync.Pool   // *[bodyInputBytes]byte
	asking  *tls.Config // as config.TLS, with a question for a certificate; nil without TLS
	spared  spared

	mu        sync.Mutex
	draining  bool
	listeners map[*Listener]struct{}
	conns     map[*Conn]struct{}
	// Invariant: counted = the conns that no limit refused; perClient has an
	// entry, greater than zero, for each client key among them that is not
	// exempt.
	counted   int
	perClient map[netip.Prefix]int
	changed   chan struct{} // closed and replaced when a connection goes
}

// New returns a Gate without listeners.
func New(c Config) *Gate {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Gate{
		config:    c,
		asking:    asking(c.TLS),
		spared:    newSpared(time.Now),
		limits:    c.Limits.withDefaults(),
		log:       c.Logger,
		buffers:   sync.Pool{New: func() any { return new([bodyInputBytes]byte) }},
		listeners: make(map[*Listener]struct{}),
		conns:     make(map[*Conn]struct{}),
		perClient: make(map[netip.Prefix]int),
		changed:   make(chan struct{}),
	}
}

// Stats returns the counters; they may be read at any time.
func (g *Gate) Stats() *Stats { return &g.stats }

// A Listener hands out Conns.
type Listener struct {
	net.Listener
	gate *Gate
}

// Listen puts the gate in front of inner.
func (g *Gate) Listen(inner net.Listener) *Listener {
	l := &Listener{Listener: inner, gate: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.draining {
		_ = inner.Close()
	}
	g.listeners[l] = struct{}{}
	return l
}

// Accept returns the next connection, a *Conn. One that is over a limit is
// returned as well: it answers 421 instead of the greeting and closes, on the
// goroutine of its own handler, so that no client can hold up this loop. While
// crowdedMax of these are open, more are closed without a word: each keeps a
// file descriptor for a while, and a flood must not take the last one.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		inner, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := newConn(l.gate, inner)
		if l.gate.add(c) {
			return c, nil
		}
		_ = inner.Close()
	}
}

// Close stops accepting. Open connections stay.
func (l *Listener) Close() error {
	l.gate.mu.Lock()
	delete(l.gate.listeners, l)
	l.gate.mu.Unlock()
	return l.Listener.Close()
}

// add registers c and judges it by the connection limits. False: there is not
// even room to refuse it.
func (g *Gate) add(c *Conn) bool {
	g.stats.Accepted.Add(1)
	key, limited := g.clientKey(c.client)
	g.mu.Lock()
	defer g.mu.Unlock()
	crowded := g.counted >= g.limits.ConnectionsMax || limited && g.perClient[key] >= g.limits.ConnectionsPerClient
	if crowded {
		g.stats.Crowded.Add(1)
	}
	switch {
	case (crowded || g.draining) && len(g.conns)-g.counted >= crowdedMax:
		return false
	case g.draining:
		c.draining = true
		c.refusal = &replyDraining
	case crowded:
		c.refusal = &replyCrowded
	default:
		c.counted = true
		g.counted++
		g.stats.Connections.Add(1)
		if limited {
			c.clientKey = key
			g.perClient[key]++
		}
	}
	g.conns[c] = struct{}{}
	return true
}

// remove forgets c. It may be called more than once.
func (g *Gate) remove(c *Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.conns[c]; !ok {
		return
	}
	delete(g.conns, c)
	if c.counted {
		g.counted--
		g.stats.Connections.Add(-1)
		if c.clientKey.IsValid() {
			if g.perClient[c.clientKey]--; g.perClient[c.clientKey] == 0 {
				delete(g.perClient, c.clientKey)
			}
		}
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// clientKey returns what a client is counted by, and whether it is.
func (g *Gate) clientKey(a netip.Addr) (netip.Prefix, bool) {
	if !a.IsValid() || a.IsLoopback() {
		return netip.Prefix{}, false
	}
	for _, p := range g.config.Exempt {
		if p.Contains(a) {
			return netip.Prefix{}, false
		}
	}
	p := g.groupOf(a)
	return p, p.IsValid()
}

// groupOf is whom an address stands for: an IPv4 address for itself, an IPv6 address
// for its /64. The zero Prefix where there is no address.
func (g *Gate) groupOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// Drain stops all listeners. Connections that are not inside a transaction say
// 421 and close; the others do so when their transaction has ended.
func (g *Gate) Drain() { g.drain(false) }

// Dismiss is Drain for a server that can finish nothing: connections inside a
// transaction say 421 as well, even in the middle of a message. Only those
// whose message is whole already get its outcome first.
func (g *Gate) Dismiss() { g.drain(true) }

func (g *Gate) drain(hasty bool) {
	g.mu.Lock()
	g.draining = true
	listeners, conns := g.listeners, make([]*Conn, 0, len(g.conns))
	g.listeners = make(map[*Listener]struct{})
	for c := range g.conns {
		conns = append(conns, c)
	}
	g.mu.Unlock()
	for l := range listeners {
		_ = l.Listener.Close()
	}
	for _, c := range conns {
		c.drain(hasty)
	}
}

// Abort closes all connections at once and writes nothing on them. A handler
// that is busy with a message goes on until its backend returns.
func (g *Gate) Abort() {
	g.mu.Lock()
	conns := make([]*Conn, 0, len(g.conns))
	for c := range g.conns {
		conns = append(conns, c)
	}
	g.mu.Unlock()
	for _, c := range conns {
		c.die()
	}
}

// Wait returns when the handlers of all connections have closed them, or with
// the context's error.
func (g *Gate) Wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		open, changed := len(g.conns), g.changed
		g.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// clientAddr returns the address of the client, or the zero Addr for
// connections that have none, in-memory ones.
func clientAddr(c net.Conn) netip.Addr {
	a := c.RemoteAddr()
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// errDraining says that a command was awaited when a drain began.
var errDraining = errors.New("service shutting down")
