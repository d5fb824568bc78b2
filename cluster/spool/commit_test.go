package spool_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// While one sync runs, all that wait for the next one share it.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 0, 100) // the first segment's own syncs are not what is counted
		disk.SetLatency(func(op clustertest.Op) time.Duration {
			if op == clustertest.OpSync {
				return 10 * time.Millisecond
			}
			return 0
		})
		before, syncs, start := disk.Count(clustertest.OpSync), s.Stats().Syncs, time.Now()
		var wg sync.WaitGroup
		for n := 1; n <= 100; n++ {
			wg.Go(func() { putLater(t, s, n, 4<<10) })
		}
		wg.Wait()
		if got := disk.Count(clustertest.OpSync) - before; got > 2 {
			t.Errorf("100 bodies took %d syncs, want 2 at most: one for the first, one for the others", got)
		}
		if got := s.Stats().Syncs - syncs; int(got) != disk.Count(clustertest.OpSync)-before {
			t.Errorf("stats count %d syncs", got)
		}
		if took := time.Since(start); took > 20*time.Millisecond {
			t.Errorf("took %v of the disk's time", took)
		}
		_ = s.Close()
	})
}

// Where bodies come close to one another, one that nobody waits for yet waits for
// others: until somebody hastens it, a Put comes, or many octets wait, and not for
// ever.
func TestPatientBodies(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		end   func(t *testing.T, s *spool.Spool, ref mail.BodyRef)
	}{
		{"hastened", 0, func(_ *testing.T, s *spool.Spool, _ mail.BodyRef) { s.Hasten() }},
		{"awaited", 0, func(t *testing.T, s *spool.Spool, ref mail.BodyRef) {
			if err := s.Await(ref); err != nil {
				t.Error(err)
			}
		}},
		{"a Put comes", 0, func(t *testing.T, s *spool.Spool, _ mail.BodyRef) { put(t, s, 5, 100) }},
		{"many octets", 0, func(t *testing.T, s *spool.Spool, _ mail.BodyRef) { begin(t, s, 5, 256<<10) }},
		{"left alone", 10 * time.Millisecond, func(*testing.T, *spool.Spool, mail.BodyRef) { time.Sleep(time.Second) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := clustertest.NewDisk(1)
				s := open(t, disk.Mount(), spool.Options{})
				defer s.Close()
				put(t, s, 0, 100)
				// One that comes alone goes at once.
				_, done := begin(t, s, 1, 100)
				synctest.Wait()
				if len(done) == 0 {
					t.Fatal("a body that came alone was not written at once")
				}
				// What waits for a sync goes together, and tells that more will come.
				disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: time.Millisecond})
				for n := 2; n <= 4; n++ {
					begin(t, s, n, 100)
					synctest.Wait()
				}
				time.Sleep(time.Second)
				start := time.Now()
				ref, stored := begin(t, s, 6, 100)
				synctest.Wait()
				if len(stored) > 0 || s.Held(ref) {
					t.Fatal("it has not waited for others")
				}
				c.end(t, s, ref)
				synctest.Wait()
				if at := <-stored; at.Sub(start) != c.after {
					t.Errorf("written after %v, want %v", at.Sub(start), c.after)
				}
			})
		})
	}
}

// begin begins a Put, and tells when it has ended.
func begin(t *testing.T, s *spool.Spool, n, size int) (mail.BodyRef, <-chan time.Time) {
	t.Helper()
	ref, b := body(n, size)
	ended := make(chan time.Time, 1)
	if !s.PutThen(ref, b, func(err error) {
		if err != nil {
			t.Errorf("put body %d: %v", n, err)
		}
		ended <- time.Now()
	}) {
		t.Fatalf("put of body %d has not begun", n)
	}
	return ref, ended
}

// A Put returns after its sync, not before; and until then the body is not held.
func TestPutWaitsForTheSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 0, 100)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: time.Hour})
		ref, _ := body(1, 100)
		arrived := s.Arrived(ref)
		done := make(chan struct{})
		start := time.Now()
		go func() {
			defer close(done)
			putLater(t, s, 1, 100)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("put returned before the sync")
		default:
		}
		<-arrived
		if s.Held(ref) {
			t.Error("held before the sync")
		}
		<-done
		if time.Since(start) != time.Hour {
			t.Errorf("put took %v", time.Since(start))
		}
		if !s.Held(ref) {
			t.Error("not held behind the sync")
		}
		_ = s.Close()
	})
}

// A body that is being written is coming: it can be pinned, and Await returns when
// it is held. Another one under its id is refused at once.
func TestComingBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 0, 100)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: time.Hour})
		ref, content := body(1, 100)
		if _, here := s.Pin(ref); here {
			t.Fatal("pinned before it came")
		}
		if err := s.Await(ref); err != nil {
			t.Errorf("await what is not coming: %v", err)
		}
		puts := make(chan error, 2)
		for range 2 {
			if !s.PutThen(ref, content, func(err error) { puts <- err }) {
				t.Fatal("not begun")
			}
		}
		release, here := s.Pin(ref)
		if !here || s.Held(ref) {
			t.Errorf("coming: pinned %v, held %v", here, s.Held(ref))
		}
		other, another := body(2, 100)
		other.ID = ref.ID
		if _, here := s.Pin(other); here {
			t.Error("another body was pinned under its id")
		}
		refused := make(chan error, 1)
		if s.PutThen(other, another, func(err error) { refused <- err }) || !errors.Is(<-refused, spool.ErrConflict) {
			t.Error("another body under its id was begun")
		}
		start := time.Now()
		if err := s.Await(ref); err != nil || !s.Held(ref) || time.Since(start) != time.Hour {
			t.Errorf("await: %v after %v, held %v", err, time.Since(start), s.Held(ref))
		}
		for range 2 {
			if err := <-puts; err != nil {
				t.Error(err)
			}
		}
		if doomed := s.Doom([]mail.QueueID{ref.ID}); len(doomed) != 0 {
			t.Error("pinned while it was coming, and doomed when it was held")
		}
		release()
		remove(t, s, ref)
		_ = s.Close()
	})
}

// Whoever awaits a body hears when the disk fails, or the spool is closed, before it
// is written.
func TestComingBodyThatNeverCame(t *testing.T) {
	for name, end := range map[string]struct {
		fault clustertest.Fault
		err   error
	}{
		"failed": {clustertest.Fault{Op: clustertest.OpSync, Delay: time.Hour, Err: syscall.EIO}, syscall.EIO},
		"closed": {clustertest.Fault{Op: clustertest.OpSync, Delay: time.Hour}, spool.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := clustertest.NewDisk(1)
				s := open(t, disk.Mount(), spool.Options{})
				disk.Inject(end.fault)
				var waiting sync.WaitGroup
				for n := 1; n <= 2; n++ { // the second waits for the first one's sync
					ref, content := body(n, 100)
					if !s.PutThen(ref, content, func(error) {}) {
						t.Fatal("not begun")
					}
					synctest.Wait()
					release, here := s.Pin(ref)
					if !here {
						t.Fatal("cannot be pinned")
					}
					waiting.Go(func() {
						// Close lets the writer finish what it has taken.
						if err := s.Await(ref); !errors.Is(err, end.err) && !(name == "closed" && err == nil && s.Held(ref)) {
							t.Errorf("await %d: %v, held %v", n, err, s.Held(ref))
						}
						release()
						if _, here := s.Pin(ref); here && !s.Held(ref) {
							t.Errorf("%d is still coming", n)
						}
					})
				}
				_ = s.Close()
				waiting.Wait()
			})
		})
	}
}

// A new segment is created, written, synced, and its name synced, in this order
// and before any body in it counts as held. The same test fails when one of the
// steps is missing; TestOrderFindsMissingSteps shows it.
func TestOrderOfANewSegment(t *testing.T) {
	if err := orderOfANewSegment(clustertest.Lie{}); err != nil {
		t.Error(err)
	}
}

func TestOrderFindsMissingSteps(t *testing.T) {
	for name, l := range map[string]clustertest.Lie{"file": {Files: true}, "directory": {Dirs: true}} {
		if err := orderOfANewSegment(l); err == nil {
			t.Errorf("without the sync of the %s nothing is found", name)
		}
	}
}

func orderOfANewSegment(l clustertest.Lie) error {
	disk := clustertest.NewDisk(1)
	s, err := spool.Open(l.Wrap(disk.Mount()), dir, spool.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	disk.Trace(true)
	ref, content := body(1, 3000)
	if err := s.Put(ref, content); err != nil {
		return err
	}
	var got []string
	for _, e := range disk.Trace(false) {
		got = append(got, e.Op.String()+" "+filepath.Base(e.Name))
	}
	want := []string{
		"create 00000001.free", "write 00000001.free", "sync 00000001.free", "rename 00000001.seg", "syncdir spool",
		"write 00000001.seg", "write 00000001.seg", "sync 00000001.seg", // the body, and ahead of the next
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("order is %q, want %q", got, want)
	}
	return nil
}

// Before a second segment exists, the first is wholly synced, even if both are
// written by one batch.
func TestFullSegmentIsSyncedBeforeTheNextIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{SegmentBytes: 16 * mail.KiB})
		put(t, s, 0, 10)
		disk.SetLatency(func(clustertest.Op) time.Duration { return time.Millisecond })
		disk.Trace(true)
		var wg sync.WaitGroup
		for n := 1; n <= 20; n++ {
			wg.Go(func() { putLater(t, s, n, 1500) })
		}
		wg.Wait()
		dirty, made := false, 0
		for _, e := range disk.Trace(false) {
			switch e.Op {
			case clustertest.OpCreate:
				made++
				if dirty {
					t.Errorf("%s is made while the segment before it is not synced", e.Name)
				}
			case clustertest.OpWrite:
				dirty = true
			case clustertest.OpSync:
				dirty = false
			}
		}
		if made < 4 {
			t.Errorf("only %d segments were made", made)
		}
		_ = s.Close()
	})
}

func TestFirstErrorIsLatched(t *testing.T) {
	type step struct {
		fault clustertest.Fault
		err   error
	}
	for name, c := range map[string]step{
		"sync":       {clustertest.Fault{Op: clustertest.OpSync, Err: syscall.EIO}, syscall.EIO},
		"write":      {clustertest.Fault{Op: clustertest.OpWrite, Err: syscall.EIO}, syscall.EIO},
		"full":       {clustertest.Fault{Op: clustertest.OpWrite, Err: syscall.ENOSPC, Short: true}, syscall.ENOSPC},
		"short":      {clustertest.Fault{Op: clustertest.OpWrite, Short: true}, nil},
		"create":     {clustertest.Fault{Op: clustertest.OpCreate, Err: syscall.ENOSPC}, syscall.ENOSPC},
		"first sync": {clustertest.Fault{Op: clustertest.OpSync, Err: syscall.EIO, Skip: 1}, syscall.EIO},
		"directory":  {clustertest.Fault{Op: clustertest.OpSyncDir, Err: syscall.EIO}, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			disk := clustertest.NewDisk(1)
			s := open(t, disk.Mount(), spool.Options{SegmentBytes: 16 * mail.KiB})
			held := put(t, s, 0, 6000)
			disk.Inject(c.fault)
			ref, content := body(1, 6000) // needs a new segment
			err := s.Put(ref, content)
			if err == nil || c.err != nil && !errors.Is(err, c.err) {
				t.Fatalf("put: %v", err)
			}
			select {
			case <-s.Failed():
			default:
				t.Fatal("not latched")
			}
			if s.Held(ref) {
				t.Error("what failed is held")
			}
			// Nothing is tried again, though the disk would do it now.
			before := disk.Count(clustertest.OpAny)
			for n := range 3 {
				ref, content := body(n+1, 100)
				if err := s.Put(ref, content); !errors.Is(err, s.Err()) || s.Err() == nil {
					t.Errorf("later put: %v, want %v", err, s.Err())
				}
			}
			if err := s.Delete(s.Doom(ids([]mail.BodyRef{held}))); !errors.Is(err, s.Err()) {
				t.Errorf("later delete: %v", err)
			}
			s.Spare([]mail.BodyRef{held})
			if err := read(s, held, 0); err != nil {
				t.Errorf("what was held before cannot be read: %v", err)
			}
			_ = s.Close()
			if n := disk.Count(clustertest.OpAny) - before; n != 0 {
				t.Errorf("%d changes of the disk after the failure", n)
			}
			s = open(t, disk.Mount(), spool.Options{})
			if err := read(s, held, 0); err != nil {
				t.Errorf("after a restart: %v", err)
			}
			put(t, s, 7, 100)
		})
	}
}

// Those who wait behind a batch that fails, fail with it; the disk is not tried
// with theirs.
func TestWaitingPutsFailWithTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 0, 100)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: time.Second, Err: syscall.EIO})
		var wg sync.WaitGroup
		for n := 1; n <= 40; n++ {
			wg.Go(func() {
				ref, content := body(n, 100)
				if err := s.Put(ref, content); !errors.Is(err, syscall.EIO) {
					t.Errorf("put %d: %v", n, err)
				}
			})
		}
		synctest.Wait()
		before := disk.Count(clustertest.OpAny) // the failing sync is counted
		wg.Wait()
		if err := s.Close(); !errors.Is(err, syscall.EIO) {
			t.Errorf("close: %v", err)
		}
		if n := disk.Count(clustertest.OpAny) - before; n != 0 {
			t.Errorf("%d changes of the disk after the failure", n)
		}
		if st := s.Stats(); st.Bodies != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// A hung disk holds up those who write, and nobody else; and the spool can be
// closed when the disk comes back.
func TestHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{})
		ref := put(t, s, 0, 1000)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: 10 * time.Minute})
		start := time.Now()
		for n := 1; n <= 2; n++ {
			go func() {
				ref, content := body(n, 1000)
				if err := s.Put(ref, content); err != nil && !errors.Is(err, spool.ErrClosed) {
					t.Errorf("put %d: %v", n, err)
				}
			}()
		}
		synctest.Wait()
		if !s.Held(ref) || len(s.Bodies()) != 1 || s.Stats().Bodies != 1 {
			t.Error("cannot be asked")
		}
		release, held := s.Pin(ref)
		if !held {
			t.Error("cannot pin")
		}
		release()
		if err := read(s, ref, 0); err != nil {
			t.Error(err)
		}
		if !time.Now().Equal(start) {
			t.Errorf("that took %v", time.Since(start))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The process that was killed cannot touch its successor's disk.
func TestKilledProcessIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewDisk(1)
		old := open(t, disk.Mount(), spool.Options{})
		put(t, old, 0, 100)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: time.Hour})
		go func() {
			ref, content := body(1, 100)
			if err := old.Put(ref, content); !errors.Is(err, clustertest.ErrKilled) {
				t.Errorf("put of a dead process: %v", err)
			}
		}()
		synctest.Wait()
		disk.Kill()
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 2, 100)
		time.Sleep(2 * time.Hour)
		<-old.Failed()
		if s.Err() != nil {
			t.Error(s.Err())
		}
		_ = old.Close()
		_ = s.Close()
	})
}
