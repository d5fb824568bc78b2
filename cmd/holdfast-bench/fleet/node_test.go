package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script makes a node whose daemon is a shell script.
func script(t *testing.T, text string) *Node {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "holdfastd")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := &Node{Name: "node-1", Dir: dir, Log: filepath.Join(dir, "log"), bin: bin}
	t.Cleanup(func() {
		if n.Running() {
			n.Kill()
		}
	})
	return n
}

// until waits for a condition that is a matter of moments.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := (&Fleet{}).Until(ctx, what, func(context.Context) error {
		if !condition() {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKillIsExpected(t *testing.T) {
	n := script(t, "exec sleep 1000")
	for range 2 {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err == nil {
			t.Error("started twice")
		}
		if n.PID() == 0 {
			t.Error("no process id")
		}
		until(t, "memory in use", func() bool { return n.PeakRSS() > 0 })
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if n.Running() || n.PID() != 0 {
			t.Error("it runs after the kill")
		}
	}
	if err := n.Fallen(); err != nil {
		t.Errorf("a kill of ours is reported: %v", err)
	}
	if n.PeakRSS() == 0 || n.Starts() != 2 {
		t.Errorf("after two lives: %d octets, %d starts", n.PeakRSS(), n.Starts())
	}
	if err := n.Kill(); err == nil {
		t.Error("killed a node that does not run")
	}
}

func TestFallenIsReported(t *testing.T) {
	n := script(t, "echo the disk is on fire >&2; exit 74")
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the end", func() bool { return n.Fallen() != nil })
	if err := n.Fallen(); !strings.Contains(err.Error(), "exit status 74") || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("%v", err)
	}
	f := &Fleet{Nodes: []*Node{n}}
	never := errors.New("never")
	if err := f.Until(t.Context(), "what never comes", func(context.Context) error { return never }); err == nil {
		t.Error("waited on without the node")
	}
	if n.TakeFallen() == nil || n.Fallen() != nil {
		t.Error("taken, and still there")
	}
}

func TestStop(t *testing.T) {
	n := script(t, "trap 'kill $!; exit 0' TERM; echo up; sleep 1000 & wait")
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the trap", func() bool { return strings.Contains(n.LogTail(), "up") })
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
	if err := n.Stop(); err != nil {
		t.Errorf("stop of a stopped node: %v", err)
	}
	bad := script(t, "trap 'kill $!; exit 3' TERM; echo up; sleep 1000 & wait")
	if err := bad.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the trap", func() bool { return strings.Contains(bad.LogTail(), "up") })
	if err := bad.Stop(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("an end with status 3: %v", err)
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := freePorts(9)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, p := range ports {
		if seen[p] || p < portMin || p > portMax {
			t.Errorf("ports %v", ports)
		}
		seen[p] = true
	}
	if len(seen) != 9 {
		t.Errorf("%d ports", len(seen))
	}
}
