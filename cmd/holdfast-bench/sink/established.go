package sink

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpEstablished is the state in which neither end of a connection has closed it
// (enum in the kernel's net/tcp_states.h).
const tcpEstablished = 1

// established reports whether a client still has its end of a connection open.
// What a client has closed before it opened the next one is no connection beside
// that, even if the session has not got to reading the end yet. Connections that
// are not TCP's count as open.
func established(c net.Conn) bool {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	open := false
	// An error means that our own end is closed.
	_ = raw.Control(func(descriptor uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(descriptor), unix.IPPROTO_TCP, unix.TCP_INFO)
		open = err == nil && info.State == tcpEstablished
	})
	return open
}
