package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// coarseChild is set in a process that TestCoarsenTimers starts of itself.
const coarseChild = "HOLDFAST_TEST_COARSE_CHILD"

// TestCoarsenTimers: every thread of the process has the slack, under the same
// process id and with the same arguments; but not where its parent chose another
// one.
func TestCoarsenTimers(t *testing.T) {
	if os.Getenv(coarseChild) != "" {
		if err := coarsenTimers(); err != nil {
			t.Fatal(err)
		}
		if _, left := os.LookupEnv(timersCoarse); left {
			t.Errorf("%s is in the environment", timersCoarse)
		}
		for _, slack := range slackOfThreads(t, 4) {
			fmt.Printf("[slack %v in %d]\n", slack, os.Getpid())
		}
		return
	}
	// A child inherits the slack of the thread that makes it.
	runtime.LockOSThread() // for good: the thread ends with the test
	for _, c := range []struct{ ours, want time.Duration }{
		{timerSlackDefault, timerSlack},
		{70 * time.Microsecond, 70 * time.Microsecond},
	} {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.ours), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCoarsenTimers$", "-test.v=false")
		cmd.Env = append(os.Environ(), coarseChild+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := ""
		for range 4 {
			want += fmt.Sprintf("[slack %v in %d]\n", c.want, cmd.Process.Pid)
		}
		if got := string(out); len(got) < len(want) || got[:len(want)] != want {
			t.Errorf("from a slack of %v:\n%swant\n%s", c.ours, got, want)
		}
	}
}

// slackOfThreads is the slack of so many threads that run at the same time.
func slackOfThreads(t *testing.T, n int) []time.Duration {
	slacks := make([]time.Duration, n)
	var locked, done sync.WaitGroup
	locked.Add(n)
	for i := range slacks {
		done.Go(func() {
			runtime.LockOSThread()
			locked.Done()
			locked.Wait()
			var err error
			if slacks[i], err = timerSlackHere(); err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	return slacks
}
