package cell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// actKey says, in the environment, what the program does in its cell, and fileKey names
// a file that it makes when it waits.
const (
	actKey  = "HOLDFAST_CELL_ACT"
	fileKey = "HOLDFAST_CELL_FILE"
)

func TestMain(m *testing.M) {
	if !Inside() {
		os.Exit(m.Run())
	}
	os.Exit(acts[os.Getenv(actKey)]())
}

var acts = map[string]func() int{
	"code":   func() int { return 7 },
	"killed": func() int { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); return 0 },
	"waits": func() int {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		if err := os.WriteFile(os.Getenv(fileKey), nil, 0o600); err != nil {
			return 1
		}
		<-signals
		return 9
	},
	"orphans": func() int {
		if err := Furnish("cell.test"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for range 20 {
			if err := exec.Command("sh", "-c", "sleep 0.05 & exit 0").Run(); err != nil {
				return 1
			}
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			stats, _ := filepath.Glob("/proc/[0-9]*/stat")
			if len(stats) == 2 { // this one, and the first
				return 0
			}
		}
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, name := range stats {
			stat, _ := os.ReadFile(name)
			fmt.Fprintf(os.Stderr, "%s", bytes.TrimSpace(stat))
		}
		return 1
	},
	"child": func() int {
		out, err := exec.Command("sh", "-c", "echo -n $"+stageKey).CombinedOutput()
		if err != nil || len(out) > 0 {
			return 1
		}
		return 0
	},
}

// enter enters a cell in which the program acts, and returns its exit code.
func enter(t *testing.T, act string, pass ...os.Signal) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	t.Setenv(actKey, act)
	err := Enter(pass...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func TestExitCodeIsThatOfTheProgram(t *testing.T) {
	if got := enter(t, "code"); got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
	if got := enter(t, "killed"); got != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d of one that was killed", got)
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "waits")
	t.Setenv(fileKey, file)
	go func() {
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				break
			}
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}()
	if got := enter(t, "waits", syscall.SIGTERM); got != 9 {
		t.Errorf("exit code %d, want that of one that was told to end", got)
	}
}

// A mail server's children outlive their parents: nobody but the first process can take
// their ends.
func TestOrphansLeaveNothing(t *testing.T) {
	if got := enter(t, "orphans"); got != 0 {
		t.Error("processes whose parent has ended are still there")
	}
}

func TestChildrenAreNotInside(t *testing.T) {
	if got := enter(t, "child"); got != 0 {
		t.Error("a child has the mark of the cell")
	}
}
