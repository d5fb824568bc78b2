package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/deploy/torture/fabric"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// A nemesis does what a schedule says.
type nemesis struct {
	cast *cast
	// lacks says why kinds of faults are left out.
	lacks map[schedule.Need]string
	done  map[schedule.Kind]int
}

// An act is a fault that was begun. Its first mend undoes what was done to links
// and disks, so that then nodes can be started again, those that must.
type act struct {
	fault  schedule.Fault
	harmed []int        // nodes of which nothing is to be expected meanwhile
	mend   func() error // nil: nothing to undo
	start  []int        // nodes to be started
	// refuses: a node to be started may refuse its data directory, since it was
	// damaged. It is given an empty one.
	refuses bool
	// ends: a node may end by itself with the exit code for stores that fail.
	ends bool
	// wiped nodes have to be taken into the cluster again.
	wiped []int
}

// look finds out what the machine lacks.
func (n *nemesis) look() {
	n.lacks, n.done = map[schedule.Need]string{}, map[schedule.Kind]int{}
	if n.cast.disks == nil {
		n.lacks[schedule.Loop] = "no loop devices or no e2fsprogs"
	}
	if _, err := exec.LookPath("strace"); err != nil {
		n.lacks[schedule.Strace] = err.Error()
	}
}

// lacking says why a kind cannot be done here, "" if it can.
func (n *nemesis) lacking(k schedule.Kind) string {
	for _, need := range k.Needs() {
		if why := n.lacks[need]; why != "" {
			return fmt.Sprintf("%s: %s", need, why)
		}
	}
	return ""
}

func everybody() []int { return []int{0, 1, 2} }

// others are all nodes but one.
func others(i int) []int {
	return slices.DeleteFunc(everybody(), func(j int) bool { return j == i })
}

// begin begins a fault.
func (n *nemesis) begin(ctx context.Context, f schedule.Fault) (act, error) {
	v := f.Victim
	if v == schedule.Leader {
		if v = n.cast.leader(ctx); v < 0 {
			v = int(f.Amount % nodesMax)
		}
		f.Victim = v
	}
	a := act{fault: f, harmed: []int{v}}
	r := rand.New(rand.NewPCG(uint64(f.Amount), 1))
	second := others(v)[r.IntN(nodesMax-1)]
	var err error
	switch f.Kind {
	case schedule.Kill:
		a.start = []int{v}
		err = n.kill(v)
	case schedule.KillTwo:
		a.harmed = []int{v, second}
		a.start = a.harmed
		err = errors.Join(n.kill(v), n.kill(second))
	case schedule.KillAll:
		a.harmed = everybody()
		a.start = append([]int{second}, others(second)...)
		for _, i := range everybody() {
			err = errors.Join(err, n.kill(i))
		}
	case schedule.Pause, schedule.Freeze:
		a.mend, err = n.pause(v)
	case schedule.CutOff:
		a.mend = n.cut(pairs(v, others(v)))
	case schedule.Alone:
		a.mend = n.cut(append(pairs(v, others(v)), outside(v, fabric.Way{Cut: true})...))
	case schedule.Bridge:
		rest := others(v)
		// Not all three are a majority that reaches one another: two of them are,
		// with the victim.
		a.harmed = rest[:1]
		a.mend = n.cut(pairs(rest[0], rest[1:]))
	case schedule.Deaf:
		a.mend = n.cut(oneWay(others(v), v))
	case schedule.Mute:
		a.mend = n.cut(reverse(oneWay(others(v), v)))
	case schedule.NoWay:
		a.mend = n.cut([]way{{addressNode(v), addressPrimary, fabric.Way{Cut: true}}})
	case schedule.Loss:
		a.harmed = everybody()
		w := fabric.Way{Loss: 0.05 + 0.25*r.Float64()}
		if kind := r.IntN(3); kind < 2 {
			w.UDP, w.TCP = kind == 0, kind == 1
		}
		a.mend = n.cut(all(w))
	case schedule.Latency:
		a.harmed = everybody()
		a.mend = n.cut(all(fabric.Way{
			Delay: time.Duration(10+r.IntN(100)) * time.Millisecond, Jitter: time.Duration(1+r.IntN(40)) * time.Millisecond, Twice: 0.05 * r.Float64(),
		}))
	case schedule.Flap:
		a.mend = n.flap(r, v)
	case schedule.Rotate:
		a.harmed = everybody()
		a.mend = n.rotate(v)
	case schedule.Clog:
		a.harmed = everybody()
		a.mend = n.clog(r)
	case schedule.Drought:
		a.mend, err = n.drought(v)
	case schedule.PrimaryDown, schedule.PrimarySlow, schedule.PrimaryDrops, schedule.PrimaryMute, schedule.PrimaryPuts:
		a.harmed = nil
		a.mend, err = n.misbehave(f.Kind, r)
	default:
		err = n.disk(ctx, f, r, &a)
	}
	if err != nil {
		return a, fmt.Errorf("%v: %w", f, err)
	}
	n.done[f.Kind]++
	n.cast.diary.harm(a.harmed...)
	return a, nil
}

// kill kills a node, if it runs: another fault of the round may have ended it.
func (n *nemesis) kill(i int) error {
	node := n.cast.fleet.Nodes[i]
	if !node.Running() {
		return nil
	}
	return node.Kill()
}

// pause stops a node, all its threads, until it is mended.
func (n *nemesis) pause(i int) (func() error, error) {
	node := n.cast.fleet.Nodes[i]
	pid := node.PID()
	if pid == 0 {
		return nil, nil
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	return func() error {
		if node.PID() != pid {
			return nil // another fault of the round killed it
		}
		return syscall.Kill(pid, syscall.SIGCONT)
	}, nil
}

// drought lets a node open hardly any more files.
func (n *nemesis) drought(i int) (func() error, error) {
	pid := n.cast.fleet.Nodes[i].PID()
	if pid == 0 {
		return nil, nil
	}
	open, err := descriptors(pid)
	if err != nil {
		return nil, err
	}
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		return nil, err
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(open) + 2, Max: old.Max}, nil); err != nil {
		return nil, err
	}
	return func() error {
		err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil)
		if errors.Is(err, unix.ESRCH) {
			return nil // it has ended: whoever looks after nodes says so
		}
		return err
	}, nil
}

// misbehave makes the primary a bad one.
func (n *nemesis) misbehave(k schedule.Kind, r *rand.Rand) (func() error, error) {
	c := n.cast
	if c.peer.primary() {
		return c.peer.misbehave(k, r)
	}
	behave := func() error { c.faults.Set(); return nil }
	switch k {
	case schedule.PrimaryDown:
		c.primaryDown()
		return c.primaryUp, nil
	case schedule.PrimarySlow:
		if c.primary == nil {
			return nil, nil
		}
		slow := c.primary
		slow.SetPace(time.Duration(500+r.IntN(5000)) * time.Millisecond)
		return func() error { slow.SetPace(0); return nil }, nil
	case schedule.PrimaryDrops:
		stages := sink.Stages()
		c.faults.Set(sink.Fault{Stage: stages[r.IntN(len(stages))], Action: sink.Drop, Rate: 0.3})
	case schedule.PrimaryMute:
		c.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Hang, Rate: 0.1})
		// Connections that hang do so for as long as a client waits for a final
		// reply, ten minutes, until somebody restarts the primary.
		return func() error { c.faults.Set(); c.primaryDown(); return c.primaryUp() }, nil
	case schedule.PrimaryPuts:
		stages := []sink.Stage{sink.Banner, sink.EHLO, sink.Mail, sink.Rcpt, sink.Data, sink.Dot}
		c.faults.Set(sink.Fault{Stage: stages[r.IntN(len(stages))], Action: sink.Defer, Rate: 0.3})
	}
	return behave, nil
}

// meanwhile runs step again and again until the mend that it returns, which then
// undoes.
func meanwhile(step func(context.Context), undo func()) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			step(ctx)
		}
	})
	return func() error {
		cancel()
		running.Wait()
		undo()
		return nil
	}
}
