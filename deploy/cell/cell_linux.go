package cell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageKey says, in the environment, what of its cell this program is.
const (
	stageKey   = "HOLDFAST_CELL"
	stageFirst = "first" // the first process, which looks after the others
	stageIn    = "in"    // the program itself
)

// inside is the answer of Inside, once that was asked.
var inside = sync.OnceValue(func() bool {
	stage := os.Getenv(stageKey)
	os.Unsetenv(stageKey) // children are this program only where they say so
	if stage == stageFirst {
		os.Exit(first())
	}
	return stage == stageIn
})

// Inside reports whether this program is in its cell. A program that calls Enter calls
// this before it does anything else: in the first process of the cell it does not
// return.
func Inside() bool { return inside() }

// first starts the program in the cell, passes signals on to it, and takes the ends of
// all processes that nobody else waits for, as only the first process can, until the
// program ends. It returns the program's exit code. With the first process all
// others end.
func first() int {
	program := exec.Command("/proc/self/exe", os.Args[1:]...)
	program.Env = append(os.Environ(), stageKey+"="+stageIn)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	if err := program.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "start in the cell:", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = program.Process.Signal(s) // it may have just ended
		}
	}()
	for {
		var status unix.WaitStatus
		switch pid, err := unix.Wait4(-1, &status, 0, nil); {
		case err != nil && !errors.Is(err, unix.EINTR):
			fmt.Fprintln(os.Stderr, "wait in the cell:", err)
			return 1
		case err != nil || pid != program.Process.Pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

// Enter runs this program once more, with the same arguments, in a cell, and
// returns when that has ended: with *exec.ExitError where it did not end well. The
// signals named, of SIGINT, SIGTERM and SIGHUP, are passed on to it; another signal
// ends this program, and with it the cell.
func Enter(pass ...os.Signal) error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageKey+"="+stageFirst)
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
