package consensus

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// addressSeparator stands between server id and address in what Raft takes
// for an address.
const addressSeparator = "@"

// raftAddress is what Raft's configuration holds as the address of a server:
// "<name>/<incarnation>@host:port". With the id in it
//   - the dialer learns whom it has to meet at the other end, and
//   - a member that comes back under a new incarnation can stand beside its
//     old id at the same host and port (Raft refuses equal addresses).
func raftAddress(id ServerID, address string) raft.ServerAddress {
	return raft.ServerAddress(string(id) + addressSeparator + address)
}

// splitRaftAddress is the reverse of raftAddress.
func splitRaftAddress(a raft.ServerAddress) (ServerID, string, error) {
	id, address, ok := strings.Cut(string(a), addressSeparator)
	if !ok {
		return "", "", fmt.Errorf("raft address %q: want <server id>@host:port", a)
	}
	return ServerID(id), address, nil
}

// stream is the caller's StreamLayer as Raft's transport wants it. It knows
// all its connections, so that Close ends them: the transport itself leaves
// accepted ones open, and with them goroutines that read.
type stream struct {
	layer  StreamLayer
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

var _ raft.StreamLayer = (*stream)(nil)

func newStream(layer StreamLayer) *stream {
	ctx, cancel := context.WithCancel(context.Background())
	return &stream{layer: layer, ctx: ctx, cancel: cancel, conns: make(map[*conn]struct{})}
}

func (s *stream) Addr() net.Addr { return s.layer.Addr() }

func (s *stream) Accept() (net.Conn, error) {
	c, err := s.layer.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c, true)
}

func (s *stream) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, address, err := splitRaftAddress(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.layer.Dial(ctx, id, address)
	if err != nil {
		return nil, fmt.Errorf("dial %s at %s: %w", id, address, err)
	}
	return s.track(c, false)
}

// Close closes the listener and every connection.
func (s *stream) Close() error {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = make(map[*conn]struct{})
	s.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	return s.layer.Close()
}

func (s *stream) track(c net.Conn, accepted bool) (net.Conn, error) {
	t := &conn{Conn: c, stream: s, in: meter{requests: accepted}}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[t] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return t, nil
}

// A conn bounds what the peer may send before we write again: the protocol is
// one request, one answer.
//
// What remains possible for a peer with a proven name: as many connections as
// the port allows it, each with one request of requestBytesMax in memory, and
// one that sends its snapshot so slowly that Raft waits for it.
type conn struct {
	net.Conn
	stream *stream

	in      meter       // of the one goroutine that reads
	written atomic.Bool // since the last read
}

// Read fails, and closes the connection, before anybody sees an octet too many.
func (c *conn) Read(p []byte) (int, error) {
	if c.written.Swap(false) {
		if c.in.inData {
			// The snapshot was answered, and no member asks for anything more
			// on such a connection (net_transport.go:508). We could not tell
			// where its data ended.
			_ = c.Close()
			return 0, io.EOF
		}
		c.in.start()
	}
	n, err := c.Conn.Read(p)
	if over := c.in.take(p[:n]); over != nil {
		_ = c.Close()
		return 0, over
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	c.written.Store(true)
	return c.Conn.Write(p)
}

func (c *conn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}
