package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A storesUnderTest opens the same stores again and again.
type storesUnderTest struct {
	// open opens them as the next process does, after close of the one before.
	open func(t *testing.T) Stores
	// monotonic stores refuse gaps.
	monotonic bool
}

// everyStore runs a test on each kind of stores that there is.
func everyStore(t *testing.T, test func(t *testing.T, u storesUnderTest)) {
	t.Helper()
	for _, kind := range []struct {
		name      string
		open      func(dir string) (Stores, error)
		monotonic bool
	}{
		{"raft-boltdb", OpenBoltStores, false},
		{"segments", OpenStores, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "raft")
			test(t, storesUnderTest{monotonic: kind.monotonic, open: func(t *testing.T) Stores {
				t.Helper()
				s, err := kind.open(dir)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}})
		})
	}
	t.Run("clustertest", func(t *testing.T) {
		disk := clustertest.NewRaftDisk(1, 0)
		test(t, storesUnderTest{open: func(*testing.T) Stores {
			s := disk.Open()
			return Stores{Log: s, Stable: s, Snapshots: s}
		}})
	})
}

// A logTwin is what a log must hold, and the log.
type logTwin struct {
	t      *testing.T
	under  storesUnderTest
	stores Stores
	want   map[uint64]*raft.Log
}

func newLogTwin(t *testing.T, u storesUnderTest) *logTwin {
	w := &logTwin{t: t, under: u, want: make(map[uint64]*raft.Log)}
	w.stores = u.open(t)
	t.Cleanup(w.close)
	return w
}

func (w *logTwin) close() {
	w.t.Helper()
	if w.stores.Close != nil {
		if err := w.stores.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
	}
	w.stores = Stores{}
}

// reopen is a restart, after which all must be as it was.
func (w *logTwin) reopen() {
	w.t.Helper()
	w.close()
	w.stores = w.under.open(w.t)
	w.check()
}

// entryOf is an entry as Raft makes them: of each type, with and without data,
// with the name of a body or without.
func entryOf(index, term uint64) *raft.Log {
	l := &raft.Log{Index: index, Term: term, Type: raft.LogCommand, AppendedAt: time.Unix(1_700_000_000, int64(index)).UTC()}
	switch index % 5 {
	case 0:
		l.Type = raft.LogNoop
		l.AppendedAt = time.Time{}
	case 1:
		l.Data = bytes.Repeat([]byte{byte(index), byte(term)}, int(index%700))
		ref := mail.NewBody(l.Data).Ref(mail.QueueID{byte(index), byte(index >> 8)})
		l.Extensions = ref.Encode()
	case 2:
		l.Type = raft.LogConfiguration
		l.Data = []byte("a configuration")
	case 3:
		l.Type = raft.LogBarrier
	default:
		l.Data = []byte{byte(index)}
	}
	return l
}

func entriesOf(first, last, term uint64) []*raft.Log {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, entryOf(i, term))
	}
	return logs
}

func (w *logTwin) store(logs ...*raft.Log) {
	w.t.Helper()
	before := make([]raft.Log, len(logs))
	for i, l := range logs {
		before[i] = *l
	}
	if err := w.stores.Log.StoreLogs(logs); err != nil {
		w.t.Fatalf("store %d to %d: %v", logs[0].Index, logs[len(logs)-1].Index, err)
	}
	for i, l := range logs {
		// Raft goes on using what it gave.
		if !sameEntry(*l, before[i]) {
			w.t.Fatalf("entry %d was changed", l.Index)
		}
		kept := *l
		w.want[l.Index] = &kept
	}
	w.bounds()
}

func (w *logTwin) delete(lowest, highest uint64) {
	w.t.Helper()
	if err := w.stores.Log.DeleteRange(lowest, highest); err != nil {
		w.t.Fatalf("delete %d to %d: %v", lowest, highest, err)
	}
	for index := range w.want {
		if lowest <= index && index <= highest {
			delete(w.want, index)
		}
	}
	w.bounds()
}

// span returns the first and last index that there must be, zeros for none.
func (w *logTwin) span() (first, last uint64) {
	for index := range w.want {
		if first == 0 || index < first {
			first = index
		}
		last = max(last, index)
	}
	return first, last
}

func (w *logTwin) bounds() {
	w.t.Helper()
	first, err := w.stores.Log.FirstIndex()
	last, err2 := w.stores.Log.LastIndex()
	wantFirst, wantLast := w.span()
	if err != nil || err2 != nil || first != wantFirst || last != wantLast {
		w.t.Fatalf("from %d to %d (%v, %v), want %d to %d", first, last, err, err2, wantFirst, wantLast)
	}
}

// check compares every entry, and what must not be there.
func (w *logTwin) check() {
	w.t.Helper()
	w.bounds()
	first, last := w.span()
	from := uint64(0)
	if first > 3 {
		from = first - 3
	}
	for index := from; index <= last+3; index++ {
		w.checkEntry(index)
	}
}

func (w *logTwin) checkEntry(index uint64) {
	w.t.Helper()
	got := raft.Log{Index: 77, Data: []byte("from an earlier use"), Extensions: []byte("too")}
	err := w.stores.Log.GetLog(index, &got)
	want := w.want[index]
	switch {
	case want == nil && err != raft.ErrLogNotFound: // compared by == in replicateTo
		w.t.Fatalf("entry %d, which is not there: %v", index, err)
	case want != nil && err != nil:
		w.t.Fatalf("entry %d: %v", index, err)
	case want != nil && !sameEntry(got, *want):
		w.t.Fatalf("entry %d: %+v, want %+v", index, got, *want)
	}
}

func sameEntry(a, b raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type &&
		bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// TestLogStore holds every log store to what Raft needs of one.
func TestLogStore(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(w *logTwin)
	}{
		{"empty", func(w *logTwin) {
			w.check()
			w.delete(0, 10) // Raft deletes what may be there after a snapshot
			w.delete(1, ^uint64(0))
			w.reopen()
		}},
		{"append", func(w *logTwin) {
			w.store(entryOf(1, 1))
			w.store(entriesOf(2, 40, 1)...)
			w.check()
			w.reopen()
			w.store(entriesOf(41, 45, 2)...)
			w.reopen()
		}},
		{"begin anywhere", func(w *logTwin) {
			w.store(entriesOf(1000, 1010, 3)...)
			w.check()
			w.reopen()
		}},
		{"one by one", func(w *logTwin) {
			for index := uint64(1); index < 30; index++ {
				if err := w.stores.Log.StoreLog(entryOf(index, 1)); err != nil {
					w.t.Fatal(err)
				}
				w.want[index] = entryOf(index, 1)
			}
			w.reopen()
		}},
		{"nothing to store", func(w *logTwin) {
			if err := w.stores.Log.StoreLogs(nil); err != nil {
				w.t.Fatal(err)
			}
			w.check()
		}},
		{"delete a prefix", func(w *logTwin) {
			w.store(entriesOf(1, 100, 1)...)
			w.delete(1, 60)
			w.check()
			w.reopen()
			w.delete(0, 70) // from below the first
			w.reopen()
			w.store(entriesOf(101, 110, 1)...)
			w.reopen()
		}},
		{"delete a suffix and overwrite it", func(w *logTwin) {
			w.store(entriesOf(1, 50, 1)...)
			w.delete(31, 50)
			w.check()
			w.reopen()
			w.store(entriesOf(31, 60, 2)...)
			w.check()
			w.reopen()
			w.delete(10, 60)
			w.store(entriesOf(10, 12, 3)...) // without a restart between
			w.reopen()
		}},
		{"delete the last entry, as a follower does again and again", func(w *logTwin) {
			w.store(entriesOf(1, 10, 1)...)
			for term := uint64(2); term < 20; term++ {
				w.delete(10, 10)
				w.store(entryOf(10, term))
			}
			w.check()
			w.reopen()
		}},
		{"delete all and go on", func(w *logTwin) {
			w.store(entriesOf(1, 20, 1)...)
			w.delete(1, 20)
			w.check()
			w.reopen()
			w.store(entriesOf(21, 25, 1)...)
			w.reopen()
		}},
		{"a snapshot is installed", func(w *logTwin) {
			// raft.go:1963: everything goes, and what follows begins far ahead.
			w.store(entriesOf(1, 20, 1)...)
			w.delete(0, 20)
			w.store(entriesOf(5001, 5010, 4)...)
			w.check()
			w.reopen()
			w.delete(0, ^uint64(0))
			w.reopen()
			w.store(entriesOf(9001, 9001, 4)...)
			w.reopen()
		}},
		{"a snapshot is installed over a longer log", func(w *logTwin) {
			w.store(entriesOf(1, 200, 1)...)
			w.delete(1, 200)
			w.store(entriesOf(101, 120, 2)...) // below what was there
			w.check()
			w.reopen()
		}},
		{"delete what is beyond both ends", func(w *logTwin) {
			w.store(entriesOf(10, 20, 1)...)
			w.delete(30, 40)
			w.delete(1, 5)
			w.check()
			w.delete(5, 4) // nothing
			w.reopen()
			w.delete(15, 1000)
			w.reopen()
		}},
		{"large batches", func(w *logTwin) {
			logs := entriesOf(1, 64, 1)
			for i, l := range logs {
				if l.Type == raft.LogCommand {
					l.Data = bytes.Repeat([]byte{byte(i)}, EntryBytesMax-mail.BodyRefBytes)
				}
			}
			w.store(logs...)
			w.check()
			w.reopen()
			w.store(entriesOf(65, 1500, 1)...)
			w.reopen()
		}},
		{"at random", func(w *logTwin) {
			random := rand.New(rand.NewPCG(1, 2))
			term := uint64(1)
			for range 300 {
				first, last := w.span()
				switch {
				case last == 0:
					begin := 1 + random.Uint64N(1000)
					w.store(entriesOf(begin, begin+random.Uint64N(20), term)...)
				case random.IntN(10) < 6:
					w.store(entriesOf(last+1, last+1+random.Uint64N(30), term)...)
				case random.IntN(10) < 4: // a conflict
					term++
					from := first + random.Uint64N(last-first+1)
					w.delete(from, last)
				case random.IntN(10) < 8: // behind a snapshot
					w.delete(first, first+random.Uint64N(last-first+1))
				default:
					w.delete(first, last)
				}
				if random.IntN(10) == 0 {
					w.reopen()
				}
			}
			w.check()
			w.reopen()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyStore(t, func(t *testing.T, u storesUnderTest) { test.run(newLogTwin(t, u)) })
		})
	}
}

// TestLogStoreGaps: a store that says that it cannot have gaps refuses one, and
// is as it was.
func TestLogStoreGaps(t *testing.T) {
	everyStore(t, func(t *testing.T, u storesUnderTest) {
		if !u.monotonic {
			t.Skip("gaps are allowed")
		}
		w := newLogTwin(t, u)
		w.store(entriesOf(1, 5, 1)...)
		for _, logs := range [][]*raft.Log{
			entriesOf(7, 8, 1), entriesOf(5, 6, 1), entriesOf(1, 1, 1), {entryOf(6, 1), entryOf(8, 1)}, {entryOf(0, 1)},
		} {
			if err := w.stores.Log.StoreLogs(logs); err == nil {
				t.Errorf("stored %d behind 5", logs[0].Index)
			}
			w.check()
		}
		if err := w.stores.Log.DeleteRange(2, 3); err == nil {
			t.Error("deleted from the middle")
		}
		w.check()
		w.store(entryOf(6, 1))
		w.reopen()
	})
}

// TestLogStoreReaders: replication reads while the main loop writes.
func TestLogStoreReaders(t *testing.T) {
	everyStore(t, func(t *testing.T, u storesUnderTest) {
		w := newLogTwin(t, u)
		w.store(entriesOf(1, 20, 1)...)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for seed := range uint64(4) {
			readers.Go(func() {
				random := rand.New(rand.NewPCG(seed, 1))
				for {
					select {
					case <-stop:
						return
					default:
					}
					first, err := w.stores.Log.FirstIndex()
					last, err2 := w.stores.Log.LastIndex()
					if err != nil || err2 != nil || last < first {
						t.Errorf("from %d to %d: %v, %v", first, last, err, err2)
						return
					}
					index := first + random.Uint64N(last-first+1)
					var got raft.Log
					switch err := w.stores.Log.GetLog(index, &got); {
					case err == raft.ErrLogNotFound:
						// Deleted in between.
					case err != nil:
						t.Errorf("entry %d: %v", index, err)
						return
					case !sameEntry(got, *entryOf(index, got.Term)):
						t.Errorf("entry %d is another: %+v", index, got)
						return
					}
				}
			})
		}
		term := uint64(1)
		for round := range uint64(60) {
			_, last := w.span()
			w.store(entriesOf(last+1, last+10, term)...)
			if round%7 == 6 {
				term++
				w.delete(last+5, last+10)
			}
			if round%11 == 10 {
				first, _ := w.span()
				w.delete(first, first+50)
			}
		}
		close(stop)
		readers.Wait()
		w.reopen()
	})
}

// TestStableStore holds every stable store to what Raft needs of one.
func TestStableStore(t *testing.T) {
	everyStore(t, func(t *testing.T, u storesUnderTest) {
		s := u.open(t)
		reopen := func() {
			t.Helper()
			if s.Close != nil {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			s = u.open(t)
		}
		defer func() {
			if s.Close != nil {
				_ = s.Close()
			}
		}()
		if v, err := s.Stable.Get([]byte("none")); err == nil && len(v) > 0 || err != nil && !isKeyNotFound(err) {
			t.Errorf("a value that is not there: %q, %v", v, err)
		}
		if n, err := s.Stable.GetUint64([]byte("none")); err == nil && n != 0 || err != nil && !isKeyNotFound(err) {
			t.Errorf("a number that is not there: %d, %v", n, err)
		}
		check := func(candidate string, term uint64) {
			t.Helper()
			v, err := s.Stable.Get([]byte("LastVoteCand"))
			n, err2 := s.Stable.GetUint64([]byte("CurrentTerm"))
			if string(v) != candidate || n != term || err != nil || err2 != nil {
				t.Errorf("%q, %d (%v, %v), want %q, %d", v, n, err, err2, candidate, term)
			}
		}
		for term, candidate := range []string{"a/1", "b/2", "b/2", "c/3"} {
			value := []byte(candidate)
			err := errors.Join(s.Stable.SetUint64([]byte("CurrentTerm"), uint64(term)), s.Stable.Set([]byte("LastVoteCand"), value))
			if err != nil {
				t.Fatal(err)
			}
			value[0] = 'x' // the caller's own
			check(candidate, uint64(term))
			reopen()
			check(candidate, uint64(term))
		}
		// The gate writes the floor while Raft writes a term.
		var writers sync.WaitGroup
		for k := range 4 {
			writers.Go(func() {
				for n := range uint64(20) {
					if err := s.Stable.SetUint64(fmt.Appendf(nil, "n%d", k), n); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writers.Wait()
		reopen()
		for k := range 4 {
			if n, err := s.Stable.GetUint64(fmt.Appendf(nil, "n%d", k)); n != 19 || err != nil {
				t.Errorf("writer %d: %d, %v", k, n, err)
			}
		}
		check("c/3", 3)
	})
}
