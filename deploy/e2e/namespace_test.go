//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/deploy/cell"
)

// The addresses of the cast.
const (
	addressDNS     = "127.0.0.53"
	addressSender  = "127.0.0.10"
	addressPrimary = "127.0.0.20"
	addressSigned  = "127.0.0.23" // of the Postfix among other makes
)

func addressNode(i int) string { return fmt.Sprintf("127.0.0.%d", 11+i) }

func TestMain(m *testing.M) {
	if cell.Inside() {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: furnish the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err := cell.Enter(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(max(exit.ExitCode(), 1))
		}
		fmt.Fprintln(os.Stderr, "e2e: enter namespaces (this needs root):", err)
		os.Exit(1)
	}
}

// furnish makes the namespaces fit to live in.
func furnish() error {
	if err := cell.Furnish("e2e.test"); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	return cell.Lay("/etc/resolv.conf", "nameserver "+addressDNS+"\n")
}

// loopbackUp brings the interface up. All of 127.0.0.0/8 can be used on it, but
// Postfix wants to see its own address among those of an interface.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	for i, address := range []string{addressSender, addressPrimary, addressSigned} {
		request, err := unix.NewIfreq(fmt.Sprintf("lo:%d", i+1))
		if err != nil {
			return err
		}
		if err := request.SetInet4Addr(netip.MustParseAddr(address).AsSlice()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, request); err != nil {
			return fmt.Errorf("add %s: %w", address, err)
		}
	}
	return nil
}
