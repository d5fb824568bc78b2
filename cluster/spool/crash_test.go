package spool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// crashSeeds is how many histories run; HOLDFAST_SPOOL_SEEDS says otherwise.
const crashSeeds = 400

func seeds(t *testing.T) uint64 {
	if v := os.Getenv("HOLDFAST_SPOOL_SEEDS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return crashSeeds / 10
	}
	return crashSeeds
}

// TestCrashHistories runs random histories of puts, deletes, process kills, disk
// errors and power failures at any operation. After each restart, every body
// whose Put returned nil is held and verifies, none whose Delete returned nil is
// back, and what is held beyond that is whole.
func TestCrashHistories(t *testing.T) {
	var total tally
	for seed := range seeds(t) {
		if err := newHistory(seed, honest).run(&total); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%+v", total)
	for what, n := range map[string]int{
		"lives": total.lives, "puts": total.puts, "deletes": total.deletes, "torn": total.torn, "unsure kept": total.kept,
		"unsure lost": total.lost, "failed syncs": total.latched, "powerless mounts": total.again,
	} {
		if n == 0 {
			t.Errorf("no history had any %s: the test proves less than it says", what)
		}
	}
}

// The histories must find a spool that does not sync, whose syncs are lies.
func TestCrashHistoriesFindMissingSyncs(t *testing.T) {
	for name, lie := range map[string]lie{"no file sync": {files: true}, "no directory sync": {dirs: true}} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(crashSeeds) {
				if err := newHistory(seed, lie).run(new(tally)); err != nil {
					t.Logf("found with seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("not found: these histories prove nothing")
		})
	}
}

// A lie says which syncs do nothing and return nil.
type lie struct{ files, dirs bool }

var honest = lie{}

type lyingFS struct {
	vfs.FS
	lie lie
}

func (l lyingFS) SyncDir(dir string) error {
	if l.lie.dirs {
		return nil
	}
	return l.FS.SyncDir(dir)
}

func (l lyingFS) Create(name string) (vfs.File, error) {
	f, err := l.FS.Create(name)
	return lyingFile{f, l.lie}, err
}

func (l lyingFS) OpenWrite(name string) (vfs.File, error) {
	f, err := l.FS.OpenWrite(name)
	return lyingFile{f, l.lie}, err
}

type lyingFile struct {
	vfs.File
	lie lie
}

func (l lyingFile) Sync() error {
	if l.lie.files {
		return nil
	}
	return l.File.Sync()
}

// A tally counts what the histories went through.
type tally struct {
	lives, puts, deletes, torn, kept, lost, latched, again int
}

// A fate is what a history knows of one body.
type fate int

const (
	gone   fate = iota // never put, or its Delete returned nil
	unsure             // a Put or Delete did not return nil: held or not, but whole
	held               // its Put returned nil
)

type history struct {
	random *rand.Rand
	disk   *clustertest.Disk
	lie    lie
	fates  map[int]fate
	sizes  map[int]int
	next   int
	busy   map[int]bool // bodies that somebody does something to in this step
	many   bool         // several writers at once: not to be replayed to the letter
}

func newHistory(seed uint64, l lie) *history {
	return &history{
		random: rand.New(rand.NewPCG(seed, 1)),
		disk:   clustertest.NewDisk(seed),
		lie:    l,
		fates:  make(map[int]fate),
		sizes:  make(map[int]int),
		many:   seed%2 == 1,
	}
}

func (h *history) run(total *tally) error {
	segment := mail.ByteSize(5<<10 + h.random.IntN(60<<10))
	for range 8 {
		total.lives++
		s, err := h.open(segment, total)
		if err != nil {
			return err
		}
		if s == nil {
			continue // the power failed while it was opened
		}
		if err := h.check(s, total); err != nil {
			return err
		}
		h.live(s, total)
		if s.Err() != nil {
			total.latched++
		}
		switch h.random.IntN(4) {
		case 0:
			_ = s.Close()
			h.disk.Kill()
		case 1:
			h.disk.Kill()
			_ = s.Close()
		default:
			h.disk.Crash()
			_ = s.Close()
		}
	}
	s, err := spool.Open(lyingFS{h.disk.Mount(), h.lie}, dir, spool.Options{SegmentBytes: segment})
	if err != nil {
		return fmt.Errorf("last open: %w", err)
	}
	defer func() { _ = s.Close() }()
	return h.check(s, total)
}

// open mounts the disk and opens the spool, perhaps under a power failure.
func (h *history) open(segment mail.ByteSize, total *tally) (*spool.Spool, error) {
	fs := lyingFS{h.disk.Mount(), h.lie}
	lift := func() {}
	if h.random.IntN(3) == 0 {
		lift = h.disk.Inject(clustertest.Fault{Skip: h.random.IntN(12), Crash: true})
	}
	s, err := spool.Open(fs, dir, spool.Options{SegmentBytes: segment})
	lift()
	if errors.Is(err, clustertest.ErrKilled) {
		total.again++
		h.disk.Crash()
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return s, nil
}

// check compares what is held with what was promised, and takes over what is
// found where nothing was.
func (h *history) check(s *spool.Spool, total *tally) error {
	st := s.Stats()
	if st.Damage != 0 || st.Bad != 0 {
		return fmt.Errorf("a crash passes for damage: %+v", st)
	}
	total.torn += st.Torn
	listed := make(map[mail.QueueID]bool)
	for _, b := range s.Bodies() {
		listed[b.Ref.ID] = true
	}
	if len(listed) != st.Bodies {
		return fmt.Errorf("%d bodies listed, %d counted", len(listed), st.Bodies)
	}
	var bytes mail.ByteSize
	for n := range h.next {
		ref, _ := body(n, h.sizes[n])
		here := s.Held(ref)
		if here != listed[ref.ID] {
			return fmt.Errorf("body %d: held is %v, listed is %v", n, here, !here)
		}
		delete(listed, ref.ID)
		switch {
		case h.fates[n] == held && !here:
			return fmt.Errorf("body %d was put and is lost", n)
		case h.fates[n] == gone && here:
			return fmt.Errorf("body %d was deleted and is back", n)
		case here:
			if err := read(s, ref, n); err != nil {
				return fmt.Errorf("body %d is held, but: %w", n, err)
			}
			bytes += ref.Size
		}
		if h.fates[n] == unsure && here {
			total.kept++
			h.fates[n] = held
		} else if h.fates[n] == unsure {
			total.lost++
			h.fates[n] = gone
		}
	}
	if len(listed) > 0 {
		return fmt.Errorf("%d bodies are held that nobody put", len(listed))
	}
	if bytes != st.BodyBytes {
		return fmt.Errorf("%d octets are held, %d counted", bytes, st.BodyBytes)
	}
	return nil
}

// live uses the spool for a while, and lets something happen to it.
func (h *history) live(s *spool.Spool, total *tally) {
	steps := 1 + h.random.IntN(30)
	switch h.random.IntN(4) {
	case 0: // nothing happens
	case 1:
		errs := []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS}
		defer h.disk.Inject(clustertest.Fault{
			Skip: h.random.IntN(steps * 3), Err: errs[h.random.IntN(len(errs))], Short: h.random.IntN(2) == 0,
		})()
	default:
		defer h.disk.Inject(clustertest.Fault{Skip: h.random.IntN(steps * 3), Crash: true})()
	}
	for range steps {
		writers := 1
		if h.many {
			writers = 1 + h.random.IntN(6)
		}
		var todo []func() (settle func())
		h.busy = make(map[int]bool)
		for range writers {
			todo = append(todo, h.step(s, total))
		}
		var wg sync.WaitGroup
		settle := make([]func(), len(todo))
		for i, do := range todo {
			wg.Go(func() { settle[i] = do() })
		}
		wg.Wait()
		for _, f := range settle {
			f()
		}
		if s.Err() != nil {
			return
		}
	}
}

// step chooses what one writer does. It is done with the others at once; what
// it means for the bodies is settled when all are done.
func (h *history) step(s *spool.Spool, total *tally) (do func() (settle func())) {
	nothing := func() func() { return func() {} }
	switch h.random.IntN(10) {
	case 0, 1, 2:
		return h.remove(s, total)
	case 3: // again: what is gone comes back, what is held stays
		if h.next == 0 {
			return nothing
		}
		n := h.random.IntN(h.next)
		if h.fates[n] == unsure || h.busy[n] {
			return nothing
		}
		return h.put(s, n, total)
	default:
		n := h.next
		h.next++
		h.sizes[n] = h.random.IntN(1 << (1 + h.random.IntN(15)))
		return h.put(s, n, total)
	}
}

// remove deletes some bodies, or thinks better of it; some are put again after
// they were doomed, which must save them, whatever the Delete is doing.
func (h *history) remove(s *spool.Spool, total *tally) func() func() {
	var victims []int
	var names []mail.QueueID
	for n := range h.next {
		if h.fates[n] == held && !h.busy[n] && h.random.IntN(3) == 0 {
			h.busy[n] = true
			ref, _ := body(n, h.sizes[n])
			victims = append(victims, n)
			names = append(names, ref.ID)
		}
	}
	doomed := s.Doom(names)
	if h.random.IntN(4) == 0 {
		s.Spare(doomed)
		return func() func() { return func() {} }
	}
	var saves []func() func()
	saved := make(map[int]bool)
	for _, n := range victims {
		if h.random.IntN(6) == 0 {
			saved[n] = true
			saves = append(saves, h.put(s, n, total))
		}
	}
	return func() func() {
		var settle []func()
		var wg sync.WaitGroup
		if h.many {
			wg.Go(func() {
				for _, save := range saves {
					settle = append(settle, save())
				}
			})
		} else {
			for _, save := range saves {
				settle = append(settle, save())
			}
		}
		err := s.Delete(doomed)
		wg.Wait()
		return func() {
			for _, n := range victims {
				if err == nil && !saved[n] {
					total.deletes++
					h.fates[n] = gone
				} else {
					h.fates[n] = unsure
				}
			}
			for _, f := range settle {
				f()
			}
		}
	}
}

func (h *history) put(s *spool.Spool, n int, total *tally) func() func() {
	h.busy[n] = true
	ref, content := body(n, h.sizes[n])
	return func() func() {
		err := s.Put(ref, content)
		return func() {
			if err == nil {
				total.puts++
				h.fates[n] = held
			} else if h.fates[n] == gone {
				h.fates[n] = unsure
			}
		}
	}
}

// A story of two crashes. The process is killed after it has unlinked the
// segment of a deleted body, before the directory is synced. Its successor does
// not see the segment, takes the tombstone for needless, unlinks the file that
// it is in, and the power fails: that unlink got to the disk, the first did not.
// So the successor must begin with a sync of what it sees.
func TestUnlinkedSegmentDoesNotComeBackWithoutItsTombstone(t *testing.T) {
	killed := 0
	for seed := range uint64(50) {
		disk := clustertest.NewDisk(seed)
		o := spool.Options{SegmentBytes: 16 * mail.KiB}
		s := open(t, disk.Mount(), o)
		ref, beside := put(t, s, 0, 3000), put(t, s, 1, 3000)
		behind := put(t, s, 2, 6000) // in the segment that gets the tombstones
		remove(t, s, ref)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSyncDir, Crash: true})
		if err := s.Delete(s.Doom([]mail.QueueID{beside.ID, behind.ID})); !errors.Is(err, clustertest.ErrKilled) {
			t.Fatalf("delete: %v", err)
		}
		_ = s.Close()

		disk.Inject(clustertest.Fault{Op: clustertest.OpRemove, Crash: true})
		if s, err := spool.Open(disk.Mount(), dir, o); err == nil {
			_ = s.Close()
		} else {
			killed++
		}
		disk.Crash()
		s = open(t, disk.Mount(), o)
		if s.Held(ref) {
			t.Fatalf("seed %d: the deleted body is back", seed)
		}
		_ = s.Close()
	}
	if killed == 0 {
		t.Error("no successor unlinked anything")
	}
}
