package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is how much later than asked for the kernel may wake a thread of this
// process that sleeps.
//
// While the process waits for a disk, a thread of Go's runtime (sysmon) asks to be
// woken every 20 µs, to see whether another thread hangs in a system call. With the
// kernel's own slack of 50 µs it is, and on a node that syncs all the time those
// wake-ups are a sixth of all processor time. Nothing here needs timers that are
// finer than this.
const timerSlack = time.Millisecond

// timerSlackDefault is what a thread has in whose line nobody chose another one.
const timerSlackDefault = 50 * time.Microsecond

// timersCoarse is in the environment of the second execution, so that there is no
// third one where the first one's slack was not kept.
const timersCoarse = "HOLDFASTD_TIMERS_COARSE"

// coarsenTimers gives all threads of this process that slack. A thread inherits it
// from the one that makes it, and the runtime's own was made before main began; so
// the process executes itself once more, under the same process id, and does not
// return. Call it before anything else is done. Who starts the process with another
// slack than the kernel's (TimerSlackNSec= in systemd) has decided otherwise.
func coarsenTimers() error {
	if os.Getenv(timersCoarse) != "" {
		return os.Unsetenv(timersCoarse)
	}
	// The thread that executes is the one that is left.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch slack, err := timerSlackHere(); {
	case err != nil:
		return err
	case slack != timerSlackDefault:
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return fmt.Errorf("set the timer slack: %w", err)
	}
	return fmt.Errorf("execute %s again: %w", self, syscall.Exec(self, os.Args, append(os.Environ(), timersCoarse+"=1")))
}

// timerSlackHere is that of the calling thread.
func timerSlackHere() (time.Duration, error) {
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0, fmt.Errorf("read the timer slack: %w", err)
	}
	return time.Duration(slack), nil
}
