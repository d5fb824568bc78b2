package node

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
)

// TestClassified: what a disk did is told from everything else.
func TestClassified(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("member: %w", consensus.ErrDisk),
		fmt.Errorf("open: %w", consensus.ErrDamaged),
		&os.PathError{Op: "fdatasync", Path: "x", Err: unix.EIO},
		&os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC},
		&os.PathError{Op: "open", Path: "x", Err: unix.EROFS},
		fmt.Errorf("once: %w", ErrDisk),
	} {
		if got := classified(err); !errors.Is(got, ErrDisk) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{
		nil, ErrConfig, consensus.ErrBodyLost, &os.PathError{Op: "open", Path: "x", Err: unix.EACCES},
	} {
		if got := classified(err); errors.Is(got, ErrDisk) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestDiskWatch: each kind of write that hangs is seen, and no longer than it
// hangs.
func TestDiskWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		w := newDiskWatch(disk.Mount())
		if err := w.MkdirAll("d"); err != nil {
			t.Fatal(err)
		}
		f, err := w.Create("d/f")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, test := range []struct {
			op    clustertest.Op
			write func() error
		}{
			{clustertest.OpWrite, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }},
			{clustertest.OpWrite, func() error { _, err := f.WritevAt([][]byte{[]byte("x"), []byte("y")}, 0); return err }},
			{clustertest.OpTruncate, func() error { return f.Truncate(0) }},
			{clustertest.OpSync, f.Sync},
			{clustertest.OpCreate, func() error { _, err := w.Create("d/g"); return err }},
			{clustertest.OpSyncDir, func() error { return w.SyncDir("d") }},
			{clustertest.OpRename, func() error { return w.Rename("d/g", "d/h") }},
			{clustertest.OpRemove, func() error { return w.Remove("d/h") }},
		} {
			lift := disk.Inject(clustertest.Fault{Op: test.op, Delay: time.Minute})
			done := make(chan error, 1)
			go func() { done <- test.write() }()
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if !w.stalled(4*time.Second) || w.stalled(6*time.Second) {
				t.Errorf("%s: over 4 s %v, over 6 s %v", test.op, w.stalled(4*time.Second), w.stalled(6*time.Second))
			}
			if err := <-done; err != nil {
				t.Errorf("%s: %v", test.op, err)
			}
			lift()
			if w.stalled(0) {
				t.Errorf("%s: still stalled", test.op)
			}
		}
	})
}
