package peer

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// connectionCredentials tell gRPC what cluster/transport has proved already:
// the connections that it is given are TLS, and the peer's name is known.
type connectionCredentials struct {
	want string // client side: whom we dialled
}

// authInfo is what gRPC remembers of a connection.
type authInfo struct {
	credentials.CommonAuthInfo
	name string
	conn net.Conn
}

func (authInfo) AuthType() string { return "holdfast-node" }

var errNotNode = errors.New("connection without a node's certificate")

func (c connectionCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	name, ok := transport.PeerName(conn)
	if !ok || name != c.want {
		return nil, nil, errors.Join(fmt.Errorf("%w: %q, want %q", errNotNode, name, c.want), conn.Close())
	}
	return conn, newAuthInfo(name, conn), nil
}

func (c connectionCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	name, ok := transport.PeerName(conn)
	if !ok {
		return nil, nil, errors.Join(errNotNode, conn.Close())
	}
	return conn, newAuthInfo(name, conn), nil
}

func newAuthInfo(name string, conn net.Conn) authInfo {
	return authInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		name:           name,
		conn:           conn,
	}
}

func (c connectionCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (c connectionCredentials) Clone() credentials.TransportCredentials { return c }

func (c connectionCredentials) OverrideServerName(string) error { return nil }

// caller returns who makes a call.
func caller(ctx context.Context) (authInfo, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return authInfo{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info, ok && info.name != ""
}
