//go:build rig

package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// TestRigSlowFS: each sync of a file that is written and of a directory waits
// once, and nothing else does.
func TestRigSlowFS(t *testing.T) {
	waits := 0
	slow := slowFS{vfs.OS(), func() { waits++ }}
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	expect := func(what string, want int, err error) {
		t.Helper()
		if err != nil || waits != want {
			t.Errorf("%s: waited %d times, want %d; %v", what, waits, want, err)
		}
	}
	made, err := slow.Create(name)
	expect("create", 0, err)
	_, err = made.WriteAt([]byte("abc"), 0)
	expect("write", 0, err)
	expect("sync", 1, made.Sync())
	expect("sync of the directory", 2, slow.SyncDir(dir))
	expect("close", 2, made.Close())
	again, err := slow.OpenWrite(name)
	expect("open", 2, err)
	expect("sync of an old file", 3, again.Sync())
	got := make([]byte, 3)
	if _, err := again.ReadAt(got, 0); err != nil || string(got) != "abc" {
		t.Errorf("read %q, %v", got, err)
	}
	expect("close", 3, again.Close())
	if f, err := slow.OpenWrite(filepath.Join(dir, "absent")); f != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v, %v", f, err)
	}
}

// TestRigSlowStores: a data directory opens with the switch on; a value that is
// stored takes two syncs, one that is there already none.
func TestRigSlowStores(t *testing.T) {
	t.Setenv(rigSyncDelay, "1ns")
	seams := System(slog.New(slog.DiscardHandler))
	if _, ok := seams.Spool.(slowFS); !ok {
		t.Errorf("bodies lie on %T", seams.Spool)
	}
	stores, err := seams.Stores(filepath.Join(t.TempDir(), "raft"))
	if err != nil {
		t.Fatal(err)
	}
	defer stores.Close()
	slow, ok := stores.Stable.(slowStable)
	if !ok {
		t.Fatalf("term and vote lie in %T", stores.Stable)
	}
	waits := 0
	slow.wait = func() { waits++ }
	for i, step := range []struct {
		set  func() error
		want int
	}{
		{func() error { return slow.SetUint64([]byte("n"), 7) }, 2},
		{func() error { return slow.SetUint64([]byte("n"), 7) }, 2},
		{func() error { return slow.SetUint64([]byte("n"), 8) }, 4},
		{func() error { return slow.Set([]byte("v"), []byte("x")) }, 6},
		{func() error { return slow.Set([]byte("v"), []byte("x")) }, 6},
	} {
		if err := step.set(); err != nil || waits != step.want {
			t.Errorf("step %d: waited %d times, want %d; %v", i, waits, step.want, err)
		}
	}
	if n, err := slow.GetUint64([]byte("n")); err != nil || n != 8 {
		t.Errorf("n is %d, %v", n, err)
	}
}

// A sleep is never shorter than it was told to be.
func TestRigSleep(t *testing.T) {
	const delay = 30 * time.Millisecond
	begin := time.Now()
	sleep(delay)
	if took := time.Since(begin); took < delay {
		t.Errorf("%v took %v", delay, took)
	}
}
