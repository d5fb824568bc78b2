package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// A Caller is who holds the other end of the socket, as the kernel says it was
// when the connection was made.
type Caller struct {
	UID, GID uint32
	PID      int32
}

// AuthType implements credentials.AuthInfo.
func (Caller) AuthType() string { return "unix" }

// callerAttrs says in a log line who called.
func callerAttrs(ctx context.Context) []slog.Attr {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(Caller); ok {
			return []slog.Attr{slog.Uint64("uid", uint64(c.UID)), slog.Int("pid", int(c.PID))}
		}
	}
	return []slog.Attr{slog.String("uid", "unknown")}
}

// peerCredentials are the credentials of a unix socket: there is nothing to
// encrypt, and the kernel vouches for the peer.
type peerCredentials struct {
	log  *slog.Logger
	open atomic.Int64 // connections
}

var (
	errNotAllowed  = errors.New("only root and the daemon's user may administer this node")
	errConnections = errors.New("too many connections")
	errServerOnly  = errors.New("these credentials are a server's")
)

// ServerHandshake implements credentials.TransportCredentials.
func (c *peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	caller, err := callerOf(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the kernel who connected: %w", err)
	}
	if caller.UID != 0 && int(caller.UID) != os.Geteuid() {
		c.log.Warn("admin connection refused", "uid", caller.UID, "pid", caller.PID)
		return nil, nil, errNotAllowed
	}
	if c.open.Add(1) > connectionsMax {
		c.open.Add(-1)
		return nil, nil, errConnections
	}
	return &counted{Conn: conn, gone: func() { c.open.Add(-1) }}, caller, nil
}

// counted tells when a connection ends.
type counted struct {
	net.Conn
	once sync.Once
	gone func()
}

func (c *counted) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerOnly
}

// Info implements credentials.TransportCredentials.
func (c *peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials. Clones count together: a
// server has one listener.
func (c *peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (c *peerCredentials) OverrideServerName(string) error { return nil }
