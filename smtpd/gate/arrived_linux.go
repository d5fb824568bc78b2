package gate

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketArrived asks the kernel for the octets in the receive queue.
func socketArrived(c net.Conn) (int, bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	n, ioctlErr := 0, error(nil)
	if err := raw.Control(func(fd uintptr) { n, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return 0, false
	}
	return n, ioctlErr == nil
}
