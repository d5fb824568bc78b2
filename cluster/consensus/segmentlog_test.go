package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// openIn opens stores for a test that closes them itself.
func openIn(t *testing.T, dir string) Stores {
	t.Helper()
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t *testing.T, s Stores) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLogOfAnother: term and vote go on only with the log that they belong to. A
// log that is gone, or comes from elsewhere, is refused, and again at the next
// start.
func TestLogOfAnother(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, log string){
		"gone":              func(t *testing.T, log string) { rename(t, log, log+".away") },
		"its name is gone":  func(t *testing.T, log string) { rename(t, filepath.Join(log, logIDFile), log+".id") },
		"of another member": func(t *testing.T, log string) { rename(t, log, log+".away"); rename(t, otherLog(t), log) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir)
			if err := s.Log.StoreLogs(entriesOf(1, 10, 1)); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			harm(t, filepath.Join(dir, logDirectory))
			for range 2 {
				if s, err := OpenStores(dir); !errors.Is(err, ErrDamaged) {
					t.Errorf("opened: %v", err)
					if err == nil {
						mustClose(t, s)
					}
				}
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// otherLog makes the log of another member and returns its directory.
func otherLog(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s := openIn(t, dir)
	if err := s.Log.StoreLogs(entriesOf(1, 10, 1)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	return filepath.Join(dir, logDirectory)
}

// TestMigrationIsRepeated: the entries of an older version arrive once and whole,
// also where a first attempt was broken off after any batch.
func TestMigrationIsRepeated(t *testing.T) {
	const last = 2*migrateBatch + 7
	for broken := range 4 {
		t.Run(fmt.Sprintf("broken off after %d batches", broken), func(t *testing.T) {
			dir := t.TempDir()
			old, err := OpenBoltStores(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := old.Log.StoreLogs(entriesOf(3, last, 2)); err != nil {
				t.Fatal(err)
			}
			mustClose(t, old)
			half, err := openSegmentLog(vfs.OS(), filepath.Join(dir, logDirectory), raftlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for n := range broken {
				from := uint64(3 + n*migrateBatch)
				if err := half.StoreLogs(entriesOf(from, min(from+migrateBatch-1, last), 2)); err != nil {
					t.Fatal(err)
				}
			}
			if err := half.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time there is nothing left to move
				s := openIn(t, dir)
				first, _ := s.Log.FirstIndex()
				end, _ := s.Log.LastIndex()
				if first != 3 || end != last {
					t.Fatalf("log from %d to %d, want 3 to %d", first, end, last)
				}
				for index := first; index <= end; index++ {
					var l raft.Log
					if err := s.Log.GetLog(index, &l); err != nil || !sameEntry(l, *entryOf(index, 2)) {
						t.Fatalf("entry %d: %+v, %v", index, l, err)
					}
				}
				mustClose(t, s)
			}
			if s, err := OpenBoltStores(dir); err == nil {
				mustClose(t, s)
				t.Error("the older kind opens a log that has been moved")
			}
		})
	}
}

// TestFlippedLogBits flips every bit of a log with a few entries: whatever is
// read is what was stored, or the log is refused, or reading fails.
func TestFlippedLogBits(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	for index := uint64(1); index <= 3; index++ { // each with a sync of its own
		if err := s.Log.StoreLogs(entriesOf(index, index, 1)); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
	names, err := filepath.Glob(filepath.Join(dir, logDirectory, "*.seg"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%q, %v", names, err)
	}
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	written := len(whole)
	for written > 0 && whole[written-1] == 0 { // a file of the pool is longer
		written--
	}
	refused, unharmed := 0, 0
	for at := 0; at < written; at += 3 {
		flipped := append([]byte(nil), whole...)
		flipped[at] ^= 1 << (at % 8)
		if err := os.WriteFile(names[0], flipped, fileMode); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStores(dir)
		if err != nil {
			refused++
			continue
		}
		first, _ := s.Log.FirstIndex()
		last, _ := s.Log.LastIndex()
		if first != 1 || last != 3 {
			t.Errorf("byte %d: the log goes from %d to %d", at, first, last)
		}
		for index := first; index <= last; index++ {
			var l raft.Log
			switch err := s.Log.GetLog(index, &l); {
			case err != nil:
				refused++
			case !sameEntry(l, *entryOf(index, 1)):
				t.Errorf("byte %d: entry %d reads as %+v", at, index, l)
			default:
				unharmed++
			}
		}
		mustClose(t, s)
	}
	if refused == 0 || unharmed == 0 {
		t.Errorf("%d refused, %d unharmed: nothing is tested", refused, unharmed)
	}
}

// BenchmarkStoreLogs compares the two kinds of log.
func BenchmarkStoreLogs(b *testing.B) {
	for _, kind := range []struct {
		name string
		open func(string) (Stores, error)
	}{{"segments", OpenStores}, {"raft-boltdb", OpenBoltStores}} {
		for _, size := range []int{300, 4096} {
			for _, batch := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/%dB/batch=%d", kind.name, size, batch), func(b *testing.B) {
					s, err := kind.open(b.TempDir())
					if err != nil {
						b.Fatal(err)
					}
					defer func() { _ = s.Close() }()
					index := uint64(0)
					logs := make([]*raft.Log, batch)
					data := make([]byte, size)
					b.SetBytes(int64(size * batch))
					for b.Loop() {
						for i := range logs {
							index++
							logs[i] = &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(1, 0)}
						}
						if err := s.Log.StoreLogs(logs); err != nil {
							b.Fatal(err)
						}
						if index%20_000 == 0 {
							if err := s.Log.DeleteRange(index-20_000+1, index-10_000); err != nil {
								b.Fatal(err)
							}
						}
					}
				})
			}
		}
	}
}
