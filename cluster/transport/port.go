package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// The limits of a port.
const (
	// handshakeMax is how long a connection may take from its first octet to
	// being handed out: TLS, the hello frame, and waiting for Accept.
	handshakeMax = 5 * time.Second

	// The handshakes in flight, in all and from one address. The latter keeps a
	// stranger with one address from shutting out the nodes.
	handshakesMax           = 128
	handshakesPerAddressMax = 32

	// The connections open, accepted ones only. A node needs about ten to each
	// other node; several nodes may share an address.
	connectionsMax           = 1024
	connectionsPerAddressMax = 256

	// acceptPauseMax bounds the pause after Accept failed, as it does while the
	// process has no file descriptor left.
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// ErrClosed: the port, or the listener on it, has been closed.
var ErrClosed = fmt.Errorf("transport: %w", net.ErrClosed)

// A DialFunc opens a connection to host:port. It obeys the context.
type DialFunc func(ctx context.Context, address string) (net.Conn, error)

// Options are what a Port needs besides its identity and its network.
type Options struct {
	// ServerID is our own: our name and incarnation. A Raft connection that
	// wants another one is refused.
	ServerID ServerID
	// Start is how often we have started with our data directory, this time
	// included.
	Start uint64
	// Known returns the newest start of a server that the cluster knows of, 0
	// for none, and false while we cannot tell yet: then no Raft connection is
	// made. One with a server that says a smaller number of itself is refused:
	// its data directory is an old copy. It is asked for each Raft connection,
	// from several goroutines, and must not block. Nil knows of nobody.
	Known  func(ServerID) (start uint64, ok bool)
	Logger *slog.Logger
}

// A Port accepts and dials connections between nodes. All its methods are safe
// for concurrent use.
type Port struct {
	id       *Identity
	listener net.Listener
	dial     DialFunc
	server   *tls.Config
	serverID ServerID
	start    uint64
	known    func(ServerID) (uint64, bool)
	refusals *refusals

	raft *sink
	grpc *sink

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	finished sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{} // Invariant: exactly the connections not yet closed.
	// handshakes and connections count what came in, by address.
	handshakes  census
	connections census
	closed      bool
}

// Listen opens the port on a TCP address.
func Listen(address string, id *Identity, o Options) (*Port, error) {
	ln, err := ListenTCP(address)
	if err != nil {
		return nil, err
	}
	p, err := New(ln, DialTCP, id, o)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return p, nil
}

// New opens the port on any listener and dialer, as tests do with a network in
// memory. The port owns the listener from here on; Close ends everything.
func New(ln net.Listener, dial DialFunc, id *Identity, o Options) (*Port, error) {
	if err := o.ServerID.Check(); err != nil {
		return nil, err
	}
	if o.ServerID.Name() != id.name {
		return nil, fmt.Errorf("server id %s: %w: the certificate is that of %q", o.ServerID, ErrWrongName, id.name)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Port{
		id:          id,
		listener:    ln,
		dial:        dial,
		server:      id.serverConfig(),
		serverID:    o.ServerID,
		start:       o.Start,
		known:       o.Known,
		refusals:    newRefusals(o.Logger),
		conns:       make(map[*conn]struct{}),
		handshakes:  census{max: handshakesMax, perAddressMax: handshakesPerAddressMax},
		connections: census{max: connectionsMax, perAddressMax: connectionsPerAddressMax},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if p.known == nil {
		p.known = func(ServerID) (uint64, bool) { return 0, true }
	}
	p.raft = newSink(p, protocolRaft)
	p.grpc = newSink(p, protocolGRPC)
	p.finished.Go(p.accept)
	return p, nil
}

// Addr returns the address that the port listens on.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// ServerID returns our own server id.
func (p *Port) ServerID() ServerID { return p.serverID }

// GRPC returns the listener that gets the gRPC connections. Closing it closes
// those that it handed out, and refuses further ones; the port stays open.
func (p *Port) GRPC() net.Listener { return p.grpc }

// Raft returns the stream layer that gets the Raft connections.
func (p *Port) Raft() *Raft { return &Raft{p} }

// DialPeer opens a gRPC connection to the named node.
func (p *Port) DialPeer(ctx context.Context, name, address string) (net.Conn, error) {
	c, err := p.dialTLS(ctx, name, address, protocolGRPC)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s at %s: %w", name, address, err), c.Close())
	}
	return c, nil
}

// dialTLS returns a connection to the named node with a deadline still set.
func (p *Port) dialTLS(ctx context.Context, name, address, protocol string) (_ *conn, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("dial %s at %s: %w", name, address, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)() // A Close of the port ends a dial too.
	socket, err := p.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	raw := &wire{Conn: socket}
	c := &conn{Conn: tls.Client(raw, p.id.clientConfig(name, protocol)), raw: raw, port: p, protocol: protocol}
	if err := p.track(c, false); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.peer = name
	c.agree(c.ConnectionState().NegotiatedProtocol)
	return c, nil
}

// Close ends the port: no connection is accepted or dialled any more, those in
// the making are dropped and those handed out are closed. It waits for the
// port's own goroutines.
func (p *Port) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	open := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	var err error
	if first {
		p.cancel()
		err = p.listener.Close()
	}
	for _, c := range open {
		_ = c.Close() // Dropped whatever it says.
	}
	p.finished.Wait()
	return err
}

// accept takes connections until the listener is closed.
func (p *Port) accept() {
	pause := acceptPauseMin
	for {
		socket, err := p.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || p.isClosed() {
				return
			}
			p.refusals.count(RefusedAccept, "", err)
			select {
			case <-time.After(pause):
			case <-p.ctx.Done():
				return
			}
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPauseMin
		raw := &wire{Conn: socket}
		address := addressKey(raw.RemoteAddr())
		c := &conn{Conn: tls.Server(raw, p.server), raw: raw, port: p, address: address, incoming: true}
		if err := p.track(c, true); err != nil {
			_ = raw.Close() // A stranger over the limit hears nothing.
			p.refusals.count(RefusedLimit, address, err)
			continue
		}
		p.finished.Go(func() { p.admit(c) })
	}
}

// admit brings one accepted connection to its listener, or ends it.
func (p *Port) admit(c *conn) {
	cause, err := p.handshake(c)
	p.mu.Lock()
	p.handshakes.leave(c.address)
	p.mu.Unlock()
	if err != nil {
		_ = c.Close() // Whatever is wrong with it is in err.
		if !p.isClosed() {
			p.refusals.count(cause, c.address, err)
		}
	}
}

// handshake does TLS and, for Raft, the hello frame, and hands c out.
func (p *Port) handshake(c *conn) (Refusal, error) {
	deadline := time.Now().Add(handshakeMax)
	if err := c.SetDeadline(deadline); err != nil {
		return RefusedTLS, err
	}
	if err := c.Handshake(); err != nil {
		return RefusedTLS, err
	}
	state := c.ConnectionState()
	who, err := principalOf(state.PeerCertificates[0])
	if err != nil {
		return RefusedTLS, err
	}
	c.peer = who.Name
	c.agree(state.NegotiatedProtocol)
	to := p.grpc
	if c.protocol == protocolRaft {
		to = p.raft
		if err := p.answerHello(c); err != nil {
			return RefusedHello, err
		}
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return RefusedTLS, err
	}
	return RefusedUnaccepted, to.give(c, deadline)
}

func (p *Port) isClosed() bool { return p.ctx.Err() != nil }

var errFull = errors.New("too many connections")

// track counts c among the open connections. An incoming one also counts
// against the limits, and among the handshakes until admit is done with it.
func (p *Port) track(c *conn, incoming bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if incoming {
		if !p.handshakes.enter(c.address) {
			return fmt.Errorf("%w in handshake", errFull)
		}
		if !p.connections.enter(c.address) {
			p.handshakes.leave(c.address)
			return errFull
		}
	}
	p.conns[c] = struct{}{}
	return nil
}

func (p *Port) untrack(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, open := p.conns[c]; !open {
		return
	}
	delete(p.conns, c)
	if c.incoming {
		p.connections.leave(c.address)
	}
}

// closeAll closes the connections of one protocol.
func (p *Port) closeAll(protocol string) {
	p.mu.Lock()
	var open []*conn
	for c := range p.conns {
		if c.handedOut && c.protocol == protocol {
			open = append(open, c)
		}
	}
	p.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// A census counts things by address, and in all.
type census struct {
	max           int
	perAddressMax int
	total         int
	byAddress     map[string]int
}

func (c *census) enter(address string) bool {
	if c.total >= c.max || c.byAddress[address] >= c.perAddressMax {
		return false
	}
	if c.byAddress == nil {
		c.byAddress = make(map[string]int)
	}
	c.total++
	c.byAddress[address]++
	return true
}

func (c *census) leave(address string) {
	c.total--
	if c.byAddress[address]--; c.byAddress[address] == 0 {
		delete(c.byAddress, address)
	}
}
