package spool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// crashPoints is how many power failures TestCrashPoints tries, unless the
// environment says otherwise.
const crashPoints = 1000

var order = clustertest.Order{Lasting: func(base string) bool { return strings.HasSuffix(base, ".seg") }}

// A fate is what a workload knows of one body.
type fate int

const (
	gone   fate = iota // never put, or its Delete returned nil
	unsure             // a Put or Delete did not return nil: held or not, but whole
	held               // its Put returned nil
)

// A workload uses a spool as a node does: puts that share batches, deletions,
// second thoughts, restarts; with times in which the keeper copies bodies forward
// and writes segments ahead.
type workload struct {
	random  *rand.Rand
	disk    *clustertest.Disk
	options spool.Options
	spool   *spool.Spool
	lift    func() // takes back an injected error

	fates []fate
	sizes []int

	tally *tally
}

// A tally counts what the workloads went through.
type tally struct {
	lives, puts, deletes, torn, kept, lost, failed int
	compacted                                      mail.ByteSize
}

func newWorkload(seed uint64, disk *clustertest.Disk) *workload {
	w := &workload{random: rand.New(rand.NewPCG(seed, 5)), disk: disk, lift: func() {}, tally: new(tally)}
	w.options = spool.Options{
		SegmentBytes: mail.ByteSize(14<<10 + w.random.IntN(40<<10)),
		PoolFiles:    w.random.IntN(3),
		Random:       rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}),
	}
	return w
}

func (w *workload) fail(one int) {
	if w.random.IntN(one) != 0 {
		return
	}
	w.lift() // one at a time, or the older one could not be taken back
	w.lift = w.disk.Inject(clustertest.Fault{
		Skip: w.random.IntN(8), Err: []error{syscall.EIO, syscall.ENOSPC}[w.random.IntN(2)], Short: w.random.IntN(2) == 0,
	})
}

func injected(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) }

// Open opens the spool and holds it to its promises.
func (w *workload) Open(fs vfs.FS) error {
	w.lift()
	w.fail(8)
	s, err := spool.Open(fs, dir, w.options)
	if injected(err) {
		w.tally.failed++
		w.lift()
		s, err = spool.Open(fs, dir, w.options)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	w.spool = s
	w.tally.lives++
	if err := w.check(); err != nil {
		w.Close()
		return err
	}
	return nil
}

func (w *workload) Close() {
	w.tally.compacted += w.spool.Stats().Compacted
	_ = w.spool.Close()
}

// check compares what is held with what was promised, and takes over what is
// found where nothing was.
func (w *workload) check() error {
	s := w.spool
	st := s.Stats()
	if st.Damage != 0 || st.Bad != 0 {
		return fmt.Errorf("a crash passes for damage: %+v", st)
	}
	w.tally.torn += st.Torn
	listed := make(map[mail.QueueID]bool)
	for _, b := range s.Bodies() {
		listed[b.Ref.ID] = true
	}
	if len(listed) != st.Bodies {
		return fmt.Errorf("%d bodies listed, %d counted", len(listed), st.Bodies)
	}
	var bytes mail.ByteSize
	for n, f := range w.fates {
		ref, _ := body(n, w.sizes[n])
		here := s.Held(ref)
		if here != listed[ref.ID] {
			return fmt.Errorf("body %d: held is %v, listed is %v", n, here, !here)
		}
		delete(listed, ref.ID)
		switch {
		case f == held && !here:
			return fmt.Errorf("body %d was put and is lost", n)
		case f == gone && here:
			return fmt.Errorf("body %d was deleted and is back", n)
		case here:
			if err := read(s, ref, n); err != nil {
				return fmt.Errorf("body %d is held, but: %w", n, err)
			}
			bytes += ref.Size
		}
		switch {
		case f == unsure && here:
			w.tally.kept++
			w.fates[n] = held
		case f == unsure:
			w.tally.lost++
			w.fates[n] = gone
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

// Step does one thing with the spool.
func (w *workload) Step() (clustertest.Next, error) {
	switch w.random.IntN(20) {
	case 0:
		return clustertest.Restart, nil
	case 1:
		return clustertest.Kill, nil
	case 2:
		w.fail(1)
	}
	switch w.random.IntN(12) {
	case 0, 1, 2, 3:
		w.put(w.body())
	case 4, 5, 6:
		w.batch()
	case 7, 8, 9:
		w.remove()
	case 10:
		if len(w.fates) > 0 {
			w.put(w.random.IntN(len(w.fates))) // again
		}
	default:
		// Never to the moment of one of the keeper's own timers: who is first then
		// would not be the same the next time.
		time.Sleep(time.Duration(w.random.Int64N(int64(8 * time.Second))))
	}
	synctest.Wait()
	if injected(w.spool.Err()) {
		w.tally.failed++
		return clustertest.Kill, nil
	}
	return clustertest.Continue, nil
}

// body makes up a new one.
func (w *workload) body() int {
	w.fates = append(w.fates, gone)
	w.sizes = append(w.sizes, w.random.IntN(1<<(1+w.random.IntN(15))))
	return len(w.fates) - 1
}

// put puts one body, while nothing else happens.
func (w *workload) put(n int) {
	ref, content := body(n, w.sizes[n])
	came := make(chan error, 1)
	w.spool.PutThen(ref, content, func(err error) {
		// Noted where it is said, not where it is heard: the writer goes on at once,
		// to free what the batch has struck out, and whether a goroutine that it has
		// woken sees the disk before or after that is anybody's guess.
		if err == nil && w.spool.Err() == nil {
			w.disk.Note(clustertest.Acknowledged)
		}
		came <- err
	})
	switch err := <-came; {
	case err == nil:
		w.tally.puts++
		w.fates[n] = held
	case w.fates[n] == gone:
		w.fates[n] = unsure
	}
	synctest.Wait()
}

// busy reports whether something else was written at this moment, or failed to.
// It is asked after a Delete, which is answered when its batch is done with.
func (w *workload) busy() bool {
	w.disk.SetLatency(nil)
	before := w.disk.Count(clustertest.OpAny)
	synctest.Wait()
	return w.disk.Count(clustertest.OpAny) != before || w.spool.Err() != nil
}

// batch puts some bodies at once: the first is a batch of its own, and the others
// share the next one, in their order.
func (w *workload) batch() {
	w.disk.SetLatency(func(op clustertest.Op) time.Duration {
		if op == clustertest.OpSync {
			return syncTime
		}
		return 0
	})
	errs := make([]chan error, 2+w.random.IntN(5))
	first := len(w.fates)
	for i := range errs {
		ref, content := body(w.body(), w.sizes[len(w.sizes)-1])
		errs[i] = make(chan error, 1)
		go func() { errs[i] <- w.spool.Put(ref, content) }()
		synctest.Wait()
	}
	for i, err := range errs {
		w.settleQuietly(first+i, <-err)
	}
	w.disk.SetLatency(nil)
	time.Sleep(2 * syncTime) // what was being synced is
}

// syncTime is what a sync takes while puts are to share one. No timer of the
// keeper ends with it.
const syncTime = time.Millisecond + 137

func (w *workload) settleQuietly(n int, err error) {
	if err == nil {
		w.tally.puts++
		w.fates[n] = held
	} else {
		w.fates[n] = unsure
	}
}

// remove deletes some bodies, or thinks better of it; some are put again after
// they were doomed, which must save them.
func (w *workload) remove() {
	var victims []mail.QueueID
	numbers := make(map[mail.QueueID]int)
	share := 1 + w.random.IntN(5)
	for n, f := range w.fates {
		if f == held && w.random.IntN(share) == 0 {
			victims = append(victims, queueID(n))
			numbers[queueID(n)] = n
		}
	}
	doomed := w.spool.Doom(victims)
	if w.random.IntN(6) == 0 {
		w.spool.Spare(doomed)
		return
	}
	for _, ref := range doomed {
		if w.random.IntN(8) == 0 {
			w.put(numbers[ref.ID])
			delete(numbers, ref.ID)
		}
	}
	err := w.spool.Delete(doomed)
	for _, n := range numbers {
		if w.fates[n] = unsure; err == nil {
			w.tally.deletes++
			w.fates[n] = gone
		}
	}
	if err == nil && len(doomed) > 0 && !w.busy() {
		w.disk.Note(clustertest.Acknowledged)
	}
}

func explorer(total *tally) clustertest.Explorer {
	return clustertest.Explorer{
		Start: func(seed uint64, disk *clustertest.Disk) clustertest.Workload {
			w := newWorkload(seed, disk)
			if total != nil {
				w.tally = total
			}
			return w
		},
		Steps:   40,
		Ordered: order.Check,
	}
}

// TestCrashPoints cuts the power at any operation of random workloads, of Open
// too, and lets some fail. After each restart every body whose Put returned nil is
// held and verifies, none whose Delete returned nil is back, what is held beyond
// that is whole; and everything is done in an order that says so.
func TestCrashPoints(t *testing.T) {
	explorer(nil).Check(t, crashPoints)
}

// A point that fails must fail again when somebody looks.
func TestCrashPointsRepeat(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			if err := explorer(nil).Repeats(clustertest.Point{Workload: seed, Operation: 40 + 3*int(seed), Fate: seed}); err != nil {
				t.Error(err)
			}
		})
	}
}

// The workloads must go through everything that they are there for.
func TestCrashWorkloadsAreVaried(t *testing.T) {
	var total tally
	e := explorer(&total)
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			if err := e.Try(clustertest.Point{Workload: seed, Operation: 200, Fate: seed}); err != nil {
				t.Error(err)
			}
		})
	}
	t.Logf("%+v", total)
	if total.lives == 0 || total.puts == 0 || total.deletes == 0 || total.torn == 0 || total.kept == 0 || total.lost == 0 ||
		total.failed == 0 || total.compacted == 0 {
		t.Errorf("something never happened: %+v", total)
	}
}

// The points must find a spool that leaves out what its promises rest on.
func TestCrashPointsFindControls(t *testing.T) {
	for name, control := range map[string]func(*clustertest.Explorer){
		"no sync of files":         func(e *clustertest.Explorer) { e.Wrap = clustertest.Lie{Files: true}.Wrap },
		"no sync of the directory": func(e *clustertest.Explorer) { e.Wrap = clustertest.Lie{Dirs: true}.Wrap },
		"promised before the sync": func(e *clustertest.Explorer) { e.Wrap = clustertest.Lie{Late: true}.Wrap },
		"the old mark": func(e *clustertest.Explorer) {
			e.Start = func(seed uint64, disk *clustertest.Disk) clustertest.Workload {
				w := newWorkload(seed, disk)
				w.options.Random = zeros{}
				return w
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := explorer(nil)
			e.Ordered = nil // by what is lost alone
			control(&e)
			at, tried, err := e.Explore(t, crashPoints)
			if err == nil {
				t.Fatalf("not found in %d points", tried)
			}
			t.Logf("found after %d points: %v: %v", tried, at, err)
		})
	}
}
