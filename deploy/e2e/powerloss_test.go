//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/deploy/datadir"
)

// The power of all three hosts fails while mail comes in, more than once. Nodes
// end by themselves, with exit code 74, since their writes fail; with power again
// all of them come up, and what got a 250 is delivered. All three lie on one file
// system, so that it fails at one moment.
func TestPowerLossOfAllNodes(t *testing.T) {
	const rounds, letters = 3, 60
	dir, err := os.MkdirTemp("", "holdfast-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk, err := clustertest.NewPowerDisk(dir, 2<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	primary := addressPrimary + ":2525"
	nodes, err := fleet.New(t.Context(), fleet.Options{Bin: binaries(), Dir: dir, Cluster: "e2e"})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes {
		data := filepath.Join(disk.Dir, n.Name)
		if err := errors.Join(os.Mkdir(data, 0o700), os.Symlink(data, filepath.Join(n.Dir, "data"))); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = nodes.Stop()
		for _, n := range nodes.Nodes {
			if t.Failed() {
				t.Logf("%s:\n%s", n.Name, n.LogTail())
			}
		}
	})
	up := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), readyTime)
		defer cancel()
		if err := nodes.Start(); err != nil {
			t.Fatal(err)
		}
		if err := nodes.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	until := func(limit time.Duration, what string, condition func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := nodes.Until(ctx, what, condition); err != nil {
			t.Fatal(err)
		}
	}
	up()
	if _, err := nodes.Holdfast(t.Context(), nodes.Nodes[0], "domain", "put", "example.test", "--to", primary); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes {
		until(readyTime, n.Name+" to know the domain", func(ctx context.Context) error {
			s, err := nodes.Status(ctx, n)
			if err == nil && len(s.Domains) != 1 {
				err = fmt.Errorf("it knows %d", len(s.Domains))
			}
			return err
		})
	}

	book := ledger.New()
	for round := range rounds {
		made := letter.New(letter.Options{Seed: uint64(round + 1), Domains: []string{"example.test"}, Sizes: letter.ShapesOfMail, BigAt: -1})
		s, err := sender.New(sender.Options{
			Targets: nodes.Addresses(), Letter: made.Letter, Count: letters, Sessions: 6, Record: book, GiveUp: 5 * time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		_, before := book.Missing()
		go func() { sent <- s.Run(t.Context()) }()
		until(readyTime, "some of the mail to be taken", func(context.Context) error {
			if _, now := book.Missing(); now < before+letters/4 {
				return fmt.Errorf("%d", now-before)
			}
			return nil
		})
		if err := disk.Cut(); err != nil {
			t.Fatal(err)
		}
		_, taken := book.Missing()
		t.Logf("round %d: the power fails with about %d of %d taken", round, taken-before, letters)
		// Who is left alone has nothing to write: nobody elects it.
		ended := func() (count int) {
			for _, n := range nodes.Nodes {
				if !n.Running() {
					count++
				}
			}
			return count
		}
		// Not until: it fails when a node ends by itself.
		for deadline := time.Now().Add(readyTime); ended() < 2; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of 3 nodes ended by themselves", ended())
			}
		}
		for _, n := range nodes.Nodes {
			if n.Running() {
				_ = n.Kill() // unless it has just ended
			}
			if fell := n.TakeFallen(); fell != nil && !strings.Contains(fell.Error(), "exit status 74") {
				t.Errorf("%s: %v", n.Name, fell)
			}
		}
		if err := errors.Join(disk.Unmount(), disk.Mount()); err != nil {
			t.Fatal(err)
		}
		up()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}

	l, err := net.Listen("tcp", primary)
	if err != nil {
		t.Fatal(err)
	}
	server := sink.Start(l, sink.Options{Hostname: "primary.test", Arrival: book.Arrival})
	until(drainTime, "everything to arrive", func(ctx context.Context) error {
		if missing, accepted := book.Missing(); missing > 0 {
			return fmt.Errorf("%d of %d missing", missing, accepted)
		}
		s, err := nodes.Status(ctx, nodes.Nodes[0])
		if err == nil && !s.Queue.Idle() {
			err = fmt.Errorf("%v", s.Queue)
		}
		return err
	})
	server.Close()
	if report := book.Check(); !report.OK() || report.Accepted < rounds*letters {
		t.Errorf("%v\n%s", report, strings.Join(report.Cases, "\n"))
	} else {
		t.Log(report)
	}

	// What a real node keeps is what the simulation flips bits of.
	for _, n := range nodes.Nodes {
		data := filepath.Join(disk.Dir, n.Name)
		err := filepath.WalkDir(data, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			within, err := filepath.Rel(data, name)
			if _, ok := datadir.KindOf(filepath.ToSlash(within)); err == nil && !ok {
				t.Errorf("%s keeps a file that is in no table: %s", n.Name, within)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := nodes.Stop(); err != nil {
		t.Error(err)
	}
}
