package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
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
	done  map[schedule.Kind]int // how often each was begun
	seen  map[schedule.Kind]int // and how often it was seen to strike
}

// An act is a fault that was begun. Its first mend undoes what was done to links
// and disks, so that then nodes can be started again, those that must.
type act struct {
	fault     schedule.Fault
	since     time.Time
	unhealthy []int // nodes of which nothing is to be expected meanwhile
	// healthyMeanwhile: but that they run until the mend, which is an outage again.
	healthyMeanwhile bool
	silent           []int        // nodes that clients cannot talk to before it is mended
	mend             func() error // nil: nothing to undo
	// refuses: the node may refuse its data directory when it is started, since that was
	// damaged. It is given an empty one.
	refuses bool
	// mustRefuse says, behind the first mend, that it has to: the others know that what
	// it has is old. It is nil where nobody knows.
	mustRefuse func() bool
	// ends: a node may end by itself with the exit code for stores that fail.
	ends bool
	// wiped nodes have to be taken into the cluster again.
	wiped []int
	// over notes in the diary that it is.
	over func()
	// seen says what was seen of the fault itself, "" where nothing was. It is asked
	// before the first mend, and after it where that told nothing.
	seen func() string
}

// errNobody says that a kind of fault has no implementation.
var errNobody = errors.New("nobody knows how")

// look finds out what the machine lacks.
func (n *nemesis) look() {
	n.lacks, n.done, n.seen = map[schedule.Need]string{}, map[schedule.Kind]int{}, map[schedule.Kind]int{}
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

func (n *nemesis) everybody() []int {
	var all []int
	for i := range n.cast.fleet.Nodes {
		all = append(all, i)
	}
	return all
}

// others are all nodes but one.
func (n *nemesis) others(i int) []int {
	return slices.DeleteFunc(n.everybody(), func(j int) bool { return j == i })
}

// begin begins a fault.
func (n *nemesis) begin(ctx context.Context, f schedule.Fault) (act, error) {
	since := time.Now() // of the outage: what is done before begin returns is some of it
	v := f.Victim
	if v == schedule.Leader {
		if v = n.cast.leader(ctx); v < 0 {
			v = int(f.Amount % uint32(len(n.cast.fleet.Nodes)))
		}
		f.Victim = v
	}
	a := act{fault: f, since: since, unhealthy: []int{v}}
	r := rand.New(rand.NewPCG(uint64(f.Amount), 1))
	rest := n.others(v)
	second := rest[r.IntN(len(rest))]
	// The smaller half of the nodes, with the victim in it: of three nodes the victim
	// alone.
	half := append([]int{v}, rest[:len(rest)/2-1]...)
	var err error
	switch f.Kind {
	case schedule.Kill:
		a.seen = n.gone(a.unhealthy)
		err = n.kill(v)
	case schedule.KillTwo:
		a.unhealthy = []int{v, second}
		a.seen = n.gone(a.unhealthy)
		err = errors.Join(n.kill(v), n.kill(second))
	case schedule.KillAll:
		a.unhealthy = n.everybody()
		a.seen = n.gone(a.unhealthy)
		for _, i := range n.everybody() {
			err = errors.Join(err, n.kill(i))
		}
	case schedule.Pause, schedule.Freeze:
		a.seen = n.stands(v)
		a.silent = []int{v}
		a.mend, err = n.pause(v)
	case schedule.CutOff:
		a.unhealthy = half
		n.cut(&a, apart(half, rest[len(half)-1:]))
	case schedule.Alone:
		a.silent = []int{v}
		n.cut(&a, append(pairs(v, rest), outside(v, fabric.Way{Cut: true})...))
	case schedule.Bridge:
		// The others are two halves. Not all nodes are a majority that reaches one
		// another: either half is, with the victim.
		a.unhealthy = rest[:len(rest)/2]
		n.cut(&a, apart(rest[:len(rest)/2], rest[len(rest)/2:]))
	case schedule.Deaf:
		n.cut(&a, oneWay(rest, v))
	case schedule.Mute:
		n.cut(&a, reverse(oneWay(rest, v)))
	case schedule.NoWay:
		n.cut(&a, []way{{addressNode(v), addressPrimary, fabric.Way{Cut: true}}})
	case schedule.Loss:
		a.unhealthy = n.everybody()
		w := fabric.Way{Loss: 0.05 + 0.25*r.Float64()}
		if kind := r.IntN(3); kind < 2 {
			w.UDP, w.TCP = kind == 0, kind == 1
		}
		if w.UDP {
			a.unhealthy = nil // gossip alone, with which no mail goes
		}
		n.cut(&a, n.all(w))
	case schedule.Latency:
		a.unhealthy = nil // it is what networks do
		n.cut(&a, n.all(fabric.Way{
			Delay: time.Duration(10+r.IntN(100)) * time.Millisecond, Jitter: time.Duration(1+r.IntN(40)) * time.Millisecond, Twice: 0.05 * r.Float64(),
		}))
	case schedule.Flap:
		n.flap(&a, r, v)
	case schedule.Rotate:
		a.unhealthy = nil // but one at a time
		n.rotate(&a, v)
	case schedule.Clog:
		a.unhealthy = n.everybody()
		n.clog(&a, r)
	case schedule.Drought:
		a.ends = true // what cannot be opened cannot be written either
		a.mend, err = n.drought(&a, v)
	case schedule.PrimaryDown, schedule.PrimarySlow, schedule.PrimaryDrops, schedule.PrimaryMute, schedule.PrimaryPuts:
		a.unhealthy = nil
		a.mend, err = n.misbehave(&a, f.Kind, r)
	default:
		err = n.disk(ctx, f, r, &a)
	}
	if err != nil {
		return a, fmt.Errorf("%v: %w", f, err)
	}
	n.done[f.Kind]++
	n.cast.diary.fail(since, a.unhealthy...)
	if a.healthyMeanwhile {
		n.cast.diary.heal(a.unhealthy...)
	}
	n.cast.diary.silence(since, a.silent...)
	return a, nil
}

// evidence is what can be seen of an act now.
func (a act) evidence() string {
	if a.seen == nil {
		return ""
	}
	return a.seen()
}

// witness notes what was seen of a fault.
func (n *nemesis) witness(f schedule.Fault, evidence string) {
	if evidence == "" {
		n.cast.diary.say("nothing was seen of %v", f)
		return
	}
	n.cast.diary.say("seen of %v: %s", f, evidence)
	n.seen[f.Kind]++
}

// idle are the kinds that were begun, and never seen to strike.
func (n *nemesis) idle() (kinds []schedule.Kind) {
	for _, k := range schedule.Kinds() {
		if n.done[k] > 0 && n.seen[k] == 0 {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// gone returns what says whether nodes are down that ran until now.
func (n *nemesis) gone(nodes []int) func() string {
	pids := map[int]int{}
	for _, i := range nodes {
		if pid := n.cast.fleet.Nodes[i].PID(); pid != 0 {
			pids[i] = pid
		}
	}
	return func() string {
		down := 0
		for i, pid := range pids {
			if n.cast.fleet.Nodes[i].PID() != pid {
				down++
			}
		}
		if down == 0 {
			return ""
		}
		return fmt.Sprintf("%d processes ended", down)
	}
}

// stands returns what says whether all threads of a node stand still.
func (n *nemesis) stands(i int) func() string {
	return func() string {
		pid := n.cast.fleet.Nodes[i].PID()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !bytes.Contains(status, []byte("State:\tT")) {
			return ""
		}
		return fmt.Sprintf("process %d is stopped", pid)
	}
}

// kill kills a node, if it runs: another fault of the round may have ended it.
func (n *nemesis) kill(i int) error {
	node := n.cast.fleet.Nodes[i]
	if !node.Running() {
		return nil
	}
	if err := node.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil // or it has ended by itself just now, which is seen later
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

// drought lets a node open no more files before it has closed some: connections come
// and go, and two more than it had open were enough for it.
func (n *nemesis) drought(a *act, i int) (func() error, error) {
	node := n.cast.fleet.Nodes[i]
	pid := node.PID()
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
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(open) * 4 / 5, Max: old.Max}, nil); err != nil {
		return nil, err
	}
	logged := n.logged(node.Log, "too many open files")
	a.seen = func() string {
		if evidence := logged(); evidence != "" {
			return evidence
		}
		return tardy(node.SMTP)
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
func (n *nemesis) misbehave(a *act, k schedule.Kind, r *rand.Rand) (func() error, error) {
	c := n.cast
	if c.peer.primary() {
		return c.peer.misbehave(a, k, r)
	}
	before := c.faults.Struck()
	a.seen = func() string {
		if more := c.faults.Struck() - before; more > 0 {
			return fmt.Sprintf("%d times", more)
		}
		return ""
	}
	behave := func() error { c.faults.Set(); return nil }
	switch k {
	case schedule.PrimaryDown:
		a.seen = away
		c.primaryDown()
		return c.primaryUp, nil
	case schedule.PrimarySlow:
		if c.primary == nil {
			return nil, nil
		}
		slow := c.primary
		paced := slow.Paced()
		a.seen = func() string {
			if more := slow.Paced() - paced; more > 0 {
				return fmt.Sprintf("%d replies kept waiting", more)
			}
			return ""
		}
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

// probeTime is less than the primary's slowest pace.
const probeTime = 400 * time.Millisecond

// away says whether nobody listens where the primary should.
func away() string {
	conn, err := net.DialTimeout("tcp", primaryAddress(), probeTime)
	if err == nil {
		conn.Close()
		return ""
	}
	return err.Error()
}

// tardy says whether who listens at an address does not greet in time.
func tardy(address string) string {
	conn, err := net.DialTimeout("tcp", address, probeTime)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(probeTime))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		return ""
	}
	return fmt.Sprintf("no greeting within %v", probeTime)
}

// logged returns what says whether a node logs a text from now on.
func (n *nemesis) logged(name, text string) func() string {
	var from int64
	if info, err := os.Stat(name); err == nil {
		from = info.Size()
	}
	return func() string {
		b, err := os.ReadFile(name)
		if err != nil {
			return ""
		}
		if count := bytes.Count(b[min(from, int64(len(b))):], []byte(text)); count > 0 {
			return fmt.Sprintf("%q logged %d times", text, count)
		}
		return ""
	}
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
