package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

func TestSnapshotStalls(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	text := `time=2026-01-05T09:00:00Z level=INFO msg=started node=node-1
time=2026-01-05T09:00:01Z level=INFO msg="snapshot written" node=node-1 room=cluster index=8200 bytes=100 messages=8000 took=1.5s capture=3µs longest_apply=4.25ms
time=2026-01-05T09:00:02Z level=INFO msg="snapshot written" node=node-1 index=8300 longest_apply=1.5s
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := snapshotStalls(file)
	if want := []time.Duration{4250 * time.Microsecond, 1500 * time.Millisecond}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := snapshotStalls(file + "-missing"); err == nil {
		t.Error("no log, and no error")
	}
}

func TestMillionResult(t *testing.T) {
	r := millionResult{
		Messages: 12, PeakRSS: 900 << 20, DiskPerQueued: 4600, Restart: 12340 * time.Millisecond, Snapshots: 1, Stall: 7500 * time.Microsecond,
		Empty: load.Result{Accepted: 200, Elapsed: 2 * time.Second}, Full: load.Result{Accepted: 270, Elapsed: 3 * time.Second},
	}
	if got, want := r.String(), "million messages=12 rss_mib=900 disk_bytes=4600 restart_s=12.3 stall_ms=7.5 rate_ratio=0.90"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.Snapshots = 0
	if got, want := r.String(), "million messages=12 rss_mib=900 disk_bytes=4600 restart_s=12.3 stall_ms=-1.0 rate_ratio=0.90"; got != want {
		t.Errorf("without a snapshot %q, want %q", got, want)
	}
}

// TestMillionDisk: three times what may be queued must fit, and something be left.
func TestMillionDisk(t *testing.T) {
	f := millionFlags{messages: 1_000_000, duration: 10 * time.Second}
	if got, least := millionDisk(f), uint64(3*1_000_000*6<<10+10<<30); got < least || got > least+16<<30 {
		t.Errorf("%d MiB, want at least %d", got>>20, least>>20)
	}
}

func TestDiskUsed(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "a/two", "a/b/three"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := diskUsed(dir)
	if err != nil || got < 300<<10 || got > 600<<10 {
		t.Errorf("%d, %v", got, err)
	}
}
