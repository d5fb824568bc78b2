package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A conn is a connection to a node of our cluster. Its fields are set before
// it is handed out.
type conn struct {
	*tls.Conn
	raw      *wire
	port     *Port
	protocol string
	hello    byte     // Raft only: the version of the hello frame
	peer     string   // the name that the peer's certificate proves
	server   ServerID // Raft only: the peer's server id
	address  string   // incoming only: what the limits count by
	incoming bool

	// writing is held while a Write is under way.
	writing sync.Mutex

	// handedOut tells that somebody else owns it now. Guarded by port.mu.
	handedOut bool
	once      sync.Once
	closeErr  error
}

// agree takes in what the handshake agreed on.
func (c *conn) agree(negotiated string) {
	c.protocol = negotiated
	switch negotiated {
	case protocolRaft:
		c.hello = helloVersion
	case protocolRaft1:
		c.protocol, c.hello = protocolRaft, helloVersion1
	}
}

// Close closes the connection below TLS, without a close_notify alert: every
// message on these connections carries its length, so the end of the stream
// proves nothing, and the alert would have to wait for a hung peer.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.closeErr = c.raw.Close()
		c.port.untrack(c)
	})
	return c.closeErr
}

// Write writes p in one piece, however many records of TLS it takes. With an error the
// connection is over, for who reads, too: TLS writes no more after one, and gRPC, whose
// writer has ended by it, goes on to give calls to a connection until its reader ends, and
// takes each back and gives it again, without a pause.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.raw.hold()
	n, err := c.Conn.Write(p)
	if released := c.raw.release(); err == nil && released != nil {
		n, err = 0, released
	}
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// PeerName returns the name of the node at the other end, as its certificate
// proves it. It is false for a connection that is not from this package.
func PeerName(c net.Conn) (string, bool) {
	if c, ok := c.(*conn); ok && c.peer != "" {
		return c.peer, true
	}
	return "", false
}

// PeerServerID returns the server id of the node at the other end of a Raft
// connection.
func PeerServerID(c net.Conn) (ServerID, bool) {
	if c, ok := c.(*conn); ok && c.server != "" {
		return c.server, true
	}
	return "", false
}

// A sink is where connections of one protocol wait for Accept. It holds none:
// a connection waits in its own goroutine, with its own deadline.
type sink struct {
	port     *Port
	protocol string
	conns    chan *conn
	done     chan struct{}
	once     sync.Once
}

func newSink(p *Port, protocol string) *sink {
	return &sink{port: p, protocol: protocol, conns: make(chan *conn), done: make(chan struct{})}
}

// give hands c to Accept. Nobody closes it from then on but its owner and the
// end of sink or port.
func (s *sink) give(c *conn, deadline time.Time) error {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	s.port.handOut(c)
	select {
	case s.conns <- c:
		return nil
	case <-timer.C:
		return context.DeadlineExceeded
	case <-s.done:
		return ErrClosed
	case <-s.port.ctx.Done():
		return ErrClosed
	}
}

func (p *Port) handOut(c *conn) {
	p.mu.Lock()
	c.handedOut = true
	p.mu.Unlock()
}

// Accept implements net.Listener.
func (s *sink) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		select {
		case <-s.done: // Both were ready, and closeAll may have come too early for c.
			return nil, errors.Join(ErrClosed, c.Close())
		default:
			return c, nil
		}
	case <-s.done:
		return nil, ErrClosed
	case <-s.port.ctx.Done():
		return nil, ErrClosed
	}
}

// Close implements net.Listener, and closes the connections of the protocol.
func (s *sink) Close() error {
	s.once.Do(func() { close(s.done) })
	s.port.closeAll(s.protocol)
	return nil
}

// Addr implements net.Listener.
func (s *sink) Addr() net.Addr { return s.port.Addr() }

// addressKey is what the limits count by: the IPv4 address, the /64 of an IPv6
// address, or, on a network of another kind, the address without its port.
func addressKey(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		prefix, _ := ip.Prefix(64) // 64 bits always fit.
		return prefix.String()
	}
	return ip.String()
}
