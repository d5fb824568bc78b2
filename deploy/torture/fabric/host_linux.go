package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is the name of each host's interface.
const device = "hf0"

// ErrNoTun: there can be no fabric here.
var ErrNoTun = errors.New("no TUN device")

// A Host is a network namespace with one interface.
type Host struct {
	space *os.File
	tun   *os.File
}

// Path is where the host's network namespace is found, while this process runs.
func (h *Host) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.space.Fd()) }

// Close takes the host off the network. Its namespace goes with the last process
// in it.
func (h *Host) Close() error { return errors.Join(h.tun.Close(), h.space.Close()) }

// Join makes a host with these addresses, in a namespace of its own.
func (f *Fabric) Join(addresses ...netip.Addr) (*Host, error) {
	type made struct {
		h   *Host
		err error
	}
	result := make(chan made)
	go func() {
		// The thread has left this process's namespace for good: it ends with
		// the goroutine, since it is never unlocked.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			result <- made{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		h, err := f.JoinHere(addresses...)
		result <- made{h, err}
	}()
	m := <-result
	return m.h, m.err
}

// JoinHere puts the network namespace of the calling thread on the network.
func (f *Fabric) JoinHere(addresses ...netip.Addr) (*Host, error) {
	space, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	tun, err := openTun()
	if err != nil {
		space.Close()
		return nil, err
	}
	h := &Host{space: space, tun: tun}
	if err := up(addresses); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	for _, a := range addresses {
		f.attach(a, func(packet []byte) {
			_, _ = tun.Write(packet) // a host that has gone takes nothing
		})
	}
	go func() {
		buffer := make([]byte, mtu+64)
		for {
			n, err := tun.Read(buffer)
			if err != nil {
				return // closed
			}
			f.carry(buffer[:n])
		}
	}()
	return h, nil
}

func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTun, err)
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %w", ErrNoTun, err)
	}
	// Only now, since the poller wants a device behind it.
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// up gives the interface its addresses and brings it up, and the loopback one.
// Everything that is not the host's own goes out through it.
func up(addresses []netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(name string, what uint, fill func(*unix.Ifreq) error) error {
		request, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(request)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, what, request)
		}
		if err != nil {
			return fmt.Errorf("set up %s: %w", name, err)
		}
		return nil
	}
	flags := func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	if err := set("lo", unix.SIOCSIFFLAGS, flags); err != nil {
		return err
	}
	if err := set(device, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(mtu); return nil }); err != nil {
		return err
	}
	for i, a := range addresses {
		name := device
		if i > 0 {
			name = fmt.Sprintf("%s:%d", device, i)
		}
		if err := set(name, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(a.AsSlice()) }); err != nil {
			return err
		}
	}
	if err := set(device, unix.SIOCSIFFLAGS, flags); err != nil {
		return err
	}
	return defaultRoute()
}

// defaultRoute sends everything out through the interface (rtnetlink(7)).
func defaultRoute() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	index, err := interfaceIndex()
	if err != nil {
		return err
	}
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 8
	message := make([]byte, size)
	*(*unix.NlMsghdr)(unsafe.Pointer(&message[0])) = unix.NlMsghdr{
		Len: size, Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_REQUEST | unix.NLM_F_CREATE | unix.NLM_F_ACK,
	}
	*(*unix.RtMsg)(unsafe.Pointer(&message[unix.SizeofNlMsghdr])) = unix.RtMsg{
		Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST,
	}
	attribute := message[unix.SizeofNlMsghdr+unix.SizeofRtMsg:]
	binary.NativeEndian.PutUint16(attribute, 8)
	binary.NativeEndian.PutUint16(attribute[2:], unix.RTA_OIF)
	binary.NativeEndian.PutUint32(attribute[4:], index)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("add a route: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("add a route: %d octets of an answer: %w", n, err)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("add a route: %w", unix.Errno(-code))
	}
	return nil
}

func interfaceIndex() (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	}
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", device, err)
	}
	return request.Uint32(), nil
}
