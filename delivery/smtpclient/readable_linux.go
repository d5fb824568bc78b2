package smtpclient

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// readable reports whether a read of nc would not wait, for octets or for the end
// of the stream. Where nc is no socket, and does not say it itself, it is false.
func readable(nc net.Conn) bool {
	switch nc := nc.(type) {
	case interface{ Readable() bool }:
		return nc.Readable()
	case syscall.Conn:
		raw, err := nc.SyscallConn()
		if err != nil {
			return false
		}
		came := false
		_ = raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
			n, err := unix.Poll(fds, 0)
			for err == unix.EINTR {
				n, err = unix.Poll(fds, 0)
			}
			came = n > 0
		})
		return came
	}
	return false
}
