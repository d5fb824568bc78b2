//go:build e2e

package e2e

import (
	"os"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
)

// newDirectory makes a directory that every user can reach, mail servers' own among them,
// as they cannot those of t.TempDir. It stays where the test fails.
func newDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kept: %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

// startNodes starts three nodes, each at an address of its own, and ends them with the
// test.
func startNodes(t *testing.T, dir string, starttls bool) *fleet.Fleet {
	t.Helper()
	nodes, err := fleet.New(t.Context(), fleet.Options{
		Bin: binaries(), Dir: dir, Cluster: "e2e", STARTTLS: starttls,
		SMTP: []string{addressNode(0) + ":25", addressNode(1) + ":25", addressNode(2) + ":25"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nodes.Stop(); err != nil {
			t.Error(err)
		}
		for _, n := range nodes.Nodes {
			if t.Failed() {
				t.Logf("%s:\n%s", n.Name, n.LogTail())
			}
		}
	})
	if err := nodes.Start(); err != nil {
		t.Fatal(err)
	}
	return nodes
}
