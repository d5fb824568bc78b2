package clustertest_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, f vfs.File, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("wrote %d of %d: %v", n, len(p), err)
	}
}

// What was synced survives every power failure; of the rest, over many seeds,
// everything that can happen to it does.
func TestDiskCrash(t *testing.T) {
	durable, extra := bytes.Repeat([]byte("d"), 1500), bytes.Repeat([]byte("x"), 4000)
	seen := make(map[string]int)
	for seed := range uint64(200) {
		disk := clustertest.NewDisk(seed)
		m := disk.Mount()
		ok(t, m.MkdirAll("/d"))
		f := must[vfs.File](t)(m.Create("/d/synced"))
		write(t, f, durable, 0)
		ok(t, f.Sync(), m.SyncDir("/d"))
		write(t, f, extra, 1500)
		g := must[vfs.File](t)(m.Create("/d/unnamed")) // its content is synced, its name is not
		write(t, g, durable, 0)
		ok(t, g.Sync())
		disk.Crash()

		if _, err := m.ReadDir("/d"); !errors.Is(err, clustertest.ErrKilled) {
			t.Fatalf("the old mount still works: %v", err)
		}
		if err := f.Sync(); !errors.Is(err, clustertest.ErrKilled) {
			t.Fatalf("an old file still works: %v", err)
		}
		got, err := disk.ReadFile("/d/synced")
		if err != nil || !bytes.HasPrefix(got, durable) {
			t.Fatalf("seed %d: what was synced is lost: %v", seed, err)
		}
		switch tail := got[1500:]; {
		case len(tail) == 0:
			seen["write lost"]++
		case bytes.Equal(tail, extra):
			seen["write kept"]++
		default:
			seen["write torn"]++
		}
		if b, err := disk.ReadFile("/d/unnamed"); err == nil {
			seen["name kept"]++
			if !bytes.Equal(b, durable) {
				t.Fatalf("seed %d: synced content is lost", seed)
			}
		} else {
			seen["name lost"]++
		}
	}
	for _, what := range []string{"write lost", "write kept", "write torn", "name kept", "name lost"} {
		if seen[what] == 0 {
			t.Errorf("never: %s (%v)", what, seen)
		}
	}
}

func TestDiskIsReplayedBySeed(t *testing.T) {
	run := func(seed uint64) []byte {
		disk := clustertest.NewDisk(seed)
		m := disk.Mount()
		ok(t, m.MkdirAll("/d"))
		f := must[vfs.File](t)(m.Create("/d/f"))
		ok(t, f.Sync(), m.SyncDir("/d"))
		for i := range 20 {
			write(t, f, bytes.Repeat([]byte{byte(i)}, 700), int64(i)*300)
		}
		disk.Crash()
		b, err := disk.ReadFile("/d/f")
		ok(t, err)
		return b
	}
	if !bytes.Equal(run(5), run(5)) {
		t.Error("the same seed gives another disk")
	}
}

// Removed and renamed names come back, or not, until the directory is synced;
// open files stay readable.
func TestDiskNames(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(100) {
		disk := clustertest.NewDisk(seed)
		m := disk.Mount()
		ok(t, m.MkdirAll("/d"))
		for _, name := range []string{"/d/a", "/d/b"} {
			f := must[vfs.File](t)(m.Create(name))
			write(t, f, []byte(name), 0)
			ok(t, f.Sync())
		}
		ok(t, m.SyncDir("/d"))
		r := must[vfs.File](t)(m.Open("/d/a"))
		ok(t, m.Remove("/d/a"), m.Rename("/d/b", "/d/c"))
		if got := disk.Names("/d"); !slices.Equal(got, []string{"c"}) {
			t.Fatal(got)
		}
		buf := make([]byte, 4)
		if _, err := r.ReadAt(buf, 0); err != nil || string(buf) != "/d/a" {
			t.Fatalf("removed file: %q, %v", buf, err)
		}
		if _, err := m.Open("/d/a"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if _, err := m.Create("/d/c"); !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		disk.Crash()
		for _, name := range disk.Names("/d") {
			seen[name]++
		}
		if n := len(disk.Names("/d")); n < 1 || n > 2 {
			t.Fatal(disk.Names("/d"))
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		if seen[name] == 0 || seen[name] == 100 {
			t.Errorf("%s survived %d times of 100", name, seen[name])
		}
	}
}

func TestDiskKillKeepsThePageCache(t *testing.T) {
	disk := clustertest.NewDisk(1)
	m := disk.Mount()
	ok(t, m.MkdirAll("/d"))
	f := must[vfs.File](t)(m.Create("/d/f"))
	write(t, f, []byte("unsynced"), 0)
	lock := must[io.Closer](t)(m.Lock("/d/LOCK"))
	if _, err := m.Lock("/d/LOCK"); !errors.Is(err, vfs.ErrLocked) {
		t.Fatal(err)
	}
	disk.Kill()
	ok(t, lock.Close())
	if b, err := disk.ReadFile("/d/f"); err != nil || string(b) != "unsynced" {
		t.Fatalf("%q, %v", b, err)
	}
	// A lock ends with its process.
	must[io.Closer](t)(disk.Mount().Lock("/d/LOCK"))
}

func TestDiskFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		m := disk.Mount()
		ok(t, m.MkdirAll("/d"))
		f := must[vfs.File](t)(m.Create("/d/f"))

		disk.Inject(clustertest.Fault{Op: clustertest.OpWrite, Skip: 1, Err: syscall.ENOSPC, Short: true})
		write(t, f, []byte("0123"), 0)
		if n, err := f.WriteAt([]byte("4567"), 4); n != 2 || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d, %v", n, err)
		}
		write(t, f, []byte("67"), 6)
		if b, _ := disk.ReadFile("/d/f"); string(b) != "01234567" {
			t.Errorf("%q", b)
		}

		lift := disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Name: "f", Forever: true, Err: syscall.EIO, Delay: time.Second})
		start := time.Now()
		for range 2 {
			if err := f.Sync(); !errors.Is(err, syscall.EIO) {
				t.Error(err)
			}
		}
		if time.Since(start) != 2*time.Second {
			t.Errorf("took %v", time.Since(start))
		}
		lift()
		ok(t, f.Sync())

		disk.Inject(clustertest.Fault{Skip: 1, Crash: true})
		write(t, f, []byte("89"), 8)
		if err := f.Sync(); !errors.Is(err, clustertest.ErrKilled) {
			t.Error(err)
		}
		if _, err := m.ReadDir("/d"); !errors.Is(err, clustertest.ErrKilled) {
			t.Error(err)
		}
	})
}

// A process that is killed while an operation takes its time has not done it.
func TestDiskKillDuringADelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		m := disk.Mount()
		ok(t, m.MkdirAll("/d"))
		f := must[vfs.File](t)(m.Create("/d/f"))
		disk.SetLatency(func(clustertest.Op) time.Duration { return time.Second })
		done := make(chan error)
		go func() {
			_, err := f.WriteAt([]byte("late"), 0)
			done <- err
		}()
		synctest.Wait()
		disk.Kill()
		if err := <-done; !errors.Is(err, clustertest.ErrKilled) {
			t.Error(err)
		}
		if b, _ := disk.ReadFile("/d/f"); len(b) != 0 {
			t.Errorf("%q got there", b)
		}
	})
}
