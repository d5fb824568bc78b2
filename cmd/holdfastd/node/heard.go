package node

import (
	"net"
	"net/netip"
)

// A heardListener says who connects.
type heardListener struct {
	net.Listener
	heard func(from netip.Addr)
}

// Accept is the listener's.
func (l heardListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		if at, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			l.heard(at.Addr())
		}
	}
	return c, err
}
