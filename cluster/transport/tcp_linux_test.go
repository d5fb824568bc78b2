package transport

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeadPeersAreNoticed: both ends of a connection have the options without
// which a vanished peer is waited for.
func TestDeadPeersAreNoticed(t *testing.T) {
	ln, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, ln)
	in := accepted(ln)
	out, err := DialTCP(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, out)
	incoming := <-in
	defer mustClose(t, incoming)
	for side, c := range map[string]net.Conn{"dialled": out, "accepted": incoming} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			for _, option := range []struct {
				name         string
				level, which int
				want         int
			}{
				{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
				{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
				{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
				{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 45_000},
			} {
				if got, err := unix.GetsockoptInt(int(fd), option.level, option.which); err != nil || got != option.want {
					t.Errorf("%s side: %s is %d, %v, want %d", side, option.name, got, err, option.want)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
