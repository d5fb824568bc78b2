package clustertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A Workload is what a process does with a disk, step by step, and what it was
// promised in return. The same seed does the same steps: what is random in it
// comes from the seed, and it has no goroutines that race.
type Workload interface {
	// Open is the start of a process: it opens what is stored on fs and holds it
	// to all that was promised before.
	Open(fs vfs.FS) error
	// Step does the next thing, and says how the process goes on. An error is a
	// broken promise, unless the power failed meanwhile.
	Step() (Next, error)
	// Close ends the process, whether its disk is there or not.
	Close()
}

// Next is how a process goes on after a step.
type Next uint8

// After Continue comes another step; after Restart the process closes what it
// has open and starts again; after Kill it starts again without that.
const (
	Continue Next = iota
	Restart
	Kill
)

// A Point is one way in which the power can fail: in which workload, at which of
// its operations that change the disk, and what becomes of what no sync covered.
// At Operation -1 it does not fail.
type Point struct {
	Workload  uint64
	Operation int
	Fate      uint64
}

// String is the form that the environment takes.
func (p Point) String() string { return fmt.Sprintf("%d/%d/%d", p.Workload, p.Operation, p.Fate) }

// The environment says how many points Check tries, or which one.
const (
	pointsVariable = "HOLDFAST_CRASH_POINTS"
	pointVariable  = "HOLDFAST_CRASH_POINT"
)

// An Explorer cuts the power at many points.
type Explorer struct {
	// Start makes the workload of a seed. It may inject faults of its own.
	Start func(seed uint64, disk *Disk) Workload
	// Steps is how long a workload goes on, restarts included.
	Steps int
	// Wrap, if it is not nil, comes between the disk and the workload: to leave
	// out what the store relies on.
	Wrap func(vfs.FS) vfs.FS
	// Ordered, if it is not nil, checks the order of operations of each run.
	Ordered func([]Event) error
}

// pointsPerWorkload is how many operations of one workload are tried.
const pointsPerWorkload = 25

// stepsAfter is how many steps follow a crash, before the next one: what was
// taken for durable too early is lost there.
const stepsAfter = 6

// Check tries that many points, or what the environment says, and fails the test
// at one where a promise is broken, with the command that repeats it.
func (e Explorer) Check(t *testing.T, points int) {
	t.Helper()
	if v := os.Getenv(pointVariable); v != "" {
		var at Point
		if _, err := fmt.Sscanf(v, "%d/%d/%d", &at.Workload, &at.Operation, &at.Fate); err != nil {
			t.Fatalf("%s=%s: want workload/operation/fate: %v", pointVariable, v, err)
		}
		synctest.Test(t, func(t *testing.T) {
			if err := e.Try(at); err != nil {
				t.Errorf("point %v: %v", at, err)
			}
		})
		return
	}
	if v := os.Getenv(pointsVariable); v != "" {
		var err error
		if points, err = strconv.Atoi(v); err != nil || points <= 0 {
			t.Fatalf("%s=%s: want a number", pointsVariable, v)
		}
	}
	at, tried, err := e.Explore(t, points)
	if err != nil {
		t.Fatalf("point %v, after %d: %v\nagain: %s", at, tried, err, again(t, at))
	}
	t.Logf("crash points: %d", tried)
}

// again returns the command that tries one point.
func again(t *testing.T, at Point) string {
	dir := "."
	if b, ok := debug.ReadBuildInfo(); ok {
		dir = "./" + strings.TrimSuffix(strings.TrimPrefix(b.Path, b.Main.Path+"/"), ".test")
	}
	return fmt.Sprintf("%s=%v go test -count=1 -run '^%s$' %s", pointVariable, at, t.Name(), dir)
}

// Explore tries that many points and returns one at which a promise is broken,
// if there is one; err says which.
func (e Explorer) Explore(t *testing.T, points int) (at Point, tried int, err error) {
	t.Helper()
	var mu sync.Mutex
	next := uint64(0)
	workloads := uint64((points + pointsPerWorkload - 1) / pointsPerWorkload)
	// claim returns the next workload, false when one has failed or none is left.
	claim := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil || next == workloads {
			return 0, false
		}
		next++
		return next - 1, true
	}
	// One subtest per processor, each with bubbles of its own.
	t.Run("points", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for w, ok := claim(); ok; w, ok = claim() {
					p, n, failed := e.tryWorkload(t, w)
					mu.Lock()
					tried += n
					if failed != nil && (err == nil || p.Workload < at.Workload) {
						at, err = p, failed
					}
					mu.Unlock()
				}
			})
		}
	})
	return at, tried, err
}

// tryWorkload runs one workload to its end, and then to some of its operations.
func (e Explorer) tryWorkload(t *testing.T, w uint64) (at Point, tried int, err error) {
	operations := 0
	at = Point{Workload: w, Operation: -1, Fate: w}
	synctest.Test(t, func(*testing.T) { operations, err = e.try(at) })
	if err != nil || operations == 0 {
		return at, 1, err
	}
	r := rand.New(rand.NewPCG(w, 0x706f696e7473))
	for i := range pointsPerWorkload {
		at = Point{Workload: w, Operation: r.IntN(operations), Fate: w*pointsPerWorkload + uint64(i)}
		synctest.Test(t, func(*testing.T) { err = e.Try(at) })
		tried++
		if err != nil {
			return at, tried, err
		}
	}
	return at, tried, nil
}

// Try cuts the power at one point, and holds what is found after it to the
// promises; goes on for a while, and cuts it again. It must be called in a
// bubble.
func (e Explorer) Try(p Point) error {
	_, err := e.try(p)
	return err
}

// try returns how many operations of the workload changed the disk before the
// power failed, too.
func (e Explorer) try(p Point) (operations int, err error) {
	r := e.begin(p)
	defer r.end()
	if p.Operation >= 0 {
		r.disk.Inject(Fault{Skip: p.Operation, Crash: true})
	}
	if err := r.live(e.Steps); err != nil {
		return 0, err
	}
	operations = r.disk.Count(OpAny)
	if p.Operation < 0 {
		return operations, r.check()
	}
	for life, steps := range []int{stepsAfter, 0} {
		r.disk.Crash()
		if err := r.live(steps); err != nil {
			return 0, fmt.Errorf("after crash %d: %w", life+1, err)
		}
	}
	return operations, r.check()
}

// Repeats tries each point twice and returns an error if the disk was not asked
// for the same operations: then a point that fails would not fail again. It must
// be called in a bubble.
func (e Explorer) Repeats(p Point) error {
	var traces [2][]Event
	e.Ordered = nil
	for i := range traces {
		e.Ordered = func(events []Event) error { traces[i] = events; return nil }
		if err := e.Try(p); err != nil {
			return err
		}
	}
	for i := range max(len(traces[0]), len(traces[1])) {
		around := func(trace []Event) []Event {
			return trace[min(max(0, i-repeatsContext), len(trace)):min(i+1, len(trace))]
		}
		if i >= len(traces[0]) || i >= len(traces[1]) || traces[0][i] != traces[1][i] {
			return fmt.Errorf("point %v: operation %d is another one the second time:\n%v\n%v", p, i, around(traces[0]), around(traces[1]))
		}
	}
	return nil
}

// repeatsContext is how many operations before the one that differs are shown.
const repeatsContext = 6

// A run is one life of a workload after the other.
type run struct {
	explorer Explorer
	disk     *Disk
	workload Workload
	open     bool
}

func (e Explorer) begin(p Point) *run {
	disk := NewDisk(p.Fate)
	disk.Trace(true)
	return &run{explorer: e, disk: disk, workload: e.Start(p.Workload, disk)}
}

// end frees what the last life holds.
func (r *run) end() {
	r.disk.Kill()
	if r.open {
		r.workload.Close()
		r.open = false
	}
}

// live starts the process and takes that many steps. It ends early, without an
// error, when the power fails.
func (r *run) live(steps int) error {
	r.end()
	if err := r.start(); err != nil || r.disk.Killed() {
		return err
	}
	for range steps {
		next, err := r.workload.Step()
		if r.disk.Killed() {
			return nil
		}
		if err != nil {
			return err
		}
		if next == Continue {
			continue
		}
		if next == Restart {
			r.workload.Close()
			r.open = false
			if r.disk.Killed() {
				return nil
			}
		}
		r.end()
		if err := r.start(); err != nil || r.disk.Killed() {
			return err
		}
	}
	return nil
}

// start mounts the disk and opens the workload. A power failure on the way is no
// error.
func (r *run) start() error {
	fs := r.disk.Mount()
	if r.explorer.Wrap != nil {
		fs = r.explorer.Wrap(fs)
	}
	err := r.workload.Open(fs)
	r.open = err == nil
	if errors.Is(err, ErrKilled) || r.disk.Killed() {
		return nil
	}
	return err
}

func (r *run) check() error {
	if r.explorer.Ordered == nil {
		return nil
	}
	return r.explorer.Ordered(r.disk.Trace(false))
}
