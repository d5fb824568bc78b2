package cell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideKey marks, in the environment, the program that is in its cell.
const insideKey = "HOLDFAST_CELL"

// Inside reports whether this program is in its cell. Its children are not, though they
// have its environment.
func Inside() bool { return os.Getenv(insideKey) != "" && os.Getpid() == 1 }

// Enter runs this program once more, with the same arguments, in a cell, and
// returns when that has ended: with *exec.ExitError where it did not end well.
// It is the first process of its process namespace. The signals named are passed
// on to it, which must take note of them, since a first process is not ended by
// those that it does not expect; another signal ends this program, and with it
// the cell.
func Enter(pass ...os.Signal) error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideKey+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if len(pass) == 0 {
		return cmd.Run()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, pass...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have just ended
		case err := <-ended:
			return err
		}
	}
}

// Furnish makes a cell fit to live in: its mounts stay in it, /proc shows its
// processes, and it has a host name.
func Furnish(hostname string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// Lay lays a file of its own over a file of the host, for the cell alone.
func Lay(path, content string) error {
	f, err := os.CreateTemp("", "holdfast-cell-")
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
