package consensus

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
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
	return s.track(c)
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
	return s.track(c)
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

func (s *stream) track(c net.Conn) (net.Conn, error) {
	t := &conn{Conn: c, stream: s}
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

type conn struct {
	net.Conn
	stream *stream
}

func (c *conn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}
