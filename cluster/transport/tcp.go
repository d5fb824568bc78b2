package transport

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"
)

// A dead peer is found out in two ways: keepalive probes where nothing is
// under way, TCP_USER_TIMEOUT where sent octets are not acknowledged. Without
// them a Raft server that receives a snapshot would wait for a vanished leader
// for ever.
const (
	keepaliveInterval = 15 * time.Second
	keepaliveProbes   = 3
	unackedMax        = keepaliveProbes * keepaliveInterval
)

// ListenTCP returns a TCP listener whose connections notice a dead peer.
func ListenTCP(address string) (net.Listener, error) {
	// Accepted sockets inherit the options of the listening one. Go would set
	// each of them again on each socket.
	lc := net.ListenConfig{KeepAlive: -1, Control: controlTCP}
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for nodes: %w", err)
	}
	return ln, nil
}

// DialTCP is the DialFunc of real networks.
func DialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, Control: controlTCP}
	return d.DialContext(ctx, "tcp", address)
}

func controlTCP(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = setDeadPeerOptions(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
