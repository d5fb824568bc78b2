package gossip

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// incomingMax bounds the TCP connections that memberlist serves at once; it has
// no limit of its own, and each may last ten seconds.
const incomingMax = 64

// bindAttemptsMax is how often a port chosen by the system is tried: it has to
// be free for both TCP and UDP.
const bindAttemptsMax = 10

// A network is memberlist's own transport, with dials that end on Close and
// with a bound on what comes in.
type network struct {
	*memberlist.NetTransport
	ctx     context.Context // ends dials and what was dialled
	streams chan net.Conn
	stop    chan struct{}
	once    sync.Once
	pumping sync.WaitGroup
	open    atomic.Int64
}

func listen(ctx context.Context, host string, port int, logger *log.Logger) (*network, error) {
	var inner *memberlist.NetTransport
	var err error
	for range bindAttemptsMax {
		inner, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: logger})
		if err == nil || port != 0 {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen for gossip: %w", err)
	}
	n := &network{NetTransport: inner, ctx: ctx, streams: make(chan net.Conn), stop: make(chan struct{})}
	n.pumping.Go(n.pump)
	return n, nil
}

// pump hands incoming connections on, up to the limit.
func (n *network) pump() {
	for {
		select {
		case c := <-n.NetTransport.StreamCh():
			if n.open.Add(1) > incomingMax {
				n.open.Add(-1)
				_ = c.Close()
				continue
			}
			counted := &endedConn{Conn: c, end: func() { n.open.Add(-1) }}
			select {
			case n.streams <- counted:
			case <-n.stop:
				_ = counted.Close()
			}
		case <-n.stop:
			return
		}
	}
}

// StreamCh implements memberlist.Transport.
func (n *network) StreamCh() <-chan net.Conn { return n.streams }

// DialTimeout implements memberlist.Transport.
func (n *network) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return n.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (n *network) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(n.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
	return &endedConn{Conn: c, end: func() { stop() }}, nil
}

// Shutdown implements memberlist.Transport. The pump goes on until the inner
// listeners have ended, since they wait for it.
func (n *network) Shutdown() error {
	err := n.NetTransport.Shutdown()
	n.once.Do(func() { close(n.stop) })
	n.pumping.Wait()
	return err
}

// An endedConn calls end once when it is closed.
type endedConn struct {
	net.Conn
	once sync.Once
	end  func()
}

func (c *endedConn) Close() error {
	c.once.Do(c.end)
	return c.Conn.Close()
}
