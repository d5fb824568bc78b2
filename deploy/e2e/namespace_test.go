//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideKey marks, in the environment, the process that has the namespaces.
const insideKey = "HOLDFAST_E2E_INSIDE"

// The addresses of the cast.
const (
	addressDNS     = "127.0.0.53"
	addressSender  = "127.0.0.10"
	addressPrimary = "127.0.0.20"
	addressSigned  = "127.0.0.23" // of the Postfix among other makes
)

func addressNode(i int) string { return fmt.Sprintf("127.0.0.%d", 11+i) }

func TestMain(m *testing.M) {
	if os.Getenv(insideKey) != "" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: furnish the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err := reenter(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(max(exit.ExitCode(), 1))
		}
		fmt.Fprintln(os.Stderr, "e2e: enter namespaces (this needs root):", err)
		os.Exit(1)
	}
}

// reenter runs this test binary again, in namespaces of its own. It is the
// first process of its process namespace: with it everything in there ends.
func reenter() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideKey+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// furnish makes the namespaces fit to live in.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Sethostname([]byte("e2e.test")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	return replace("/etc/resolv.conf", "nameserver "+addressDNS+"\n")
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

// replace lays a file of ours over a file of the host, for us alone.
func replace(path, content string) error {
	f, err := os.CreateTemp("", "holdfast-e2e-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the mount keeps it
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := unix.Mount(f.Name(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("lay a file over %s: %w", path, err)
	}
	return nil
}
