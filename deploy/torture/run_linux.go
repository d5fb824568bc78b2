package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/deploy/cell"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

const (
	// settleTime is how long nodes may take to be ready when all is mended;
	// wholeTime how long one that lost its disk may take to be a voter again.
	settleTime = 60 * time.Second
	wholeTime  = 90 * time.Second
	// resumeTime is how long 250s may stay away with a healthy majority.
	resumeTime = 30 * time.Second
	// drainTime is how long the queue may take to drain when all is mended. A
	// primary that is up again is found within 30 s, and what is in doubt waits for
	// doubtTime and a tick of the log, which is a minute.
	drainTime = 150 * time.Second
	// watchEvery is how often nodes are asked who leads.
	watchEvery = 2 * time.Second
	// descriptorsMore is how many more files a node may have open at the end than
	// at the beginning: segments come and go.
	descriptorsMore = 40
)

// A run is one run.
type run struct {
	o       options
	begin   time.Time
	diary   *diary
	dir     string // of everything while the run lasts; exists
	plan    schedule.Plan
	cast    *cast
	nem     *nemesis
	load    *load
	sent    *ledger.Ledger
	book    *ledger.Ledger
	arrived *ledger.Ledger
	files   []int // descriptors of each node when the run began
	// mayEnd is until when nodes may end whose disk was broken, mayLack those whose disk
	// lost what it had.
	mayEnd   map[int]time.Time
	mayLack  map[int]time.Time
	asked    int // how often nodes were asked to relay
	taken    int // and did not refuse
	spans    ledger.Span
	released int // messages that were refused before anything else was taken
}

// do does all of it.
func (r *run) do(ctx context.Context) (err error) {
	r.diary = newDiary(os.Stderr, r.begin)
	if err := cell.Furnish("torture.test"); err != nil {
		return err
	}
	for _, path := range []*string{&r.o.out, &r.o.bin, &r.o.unpacked} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	leave, err := occupy(r.o.out)
	if err != nil {
		return err
	}
	defer leave()
	defer func() {
		if r.cast != nil {
			err = errors.Join(err, r.cast.close())
		}
		if (err != nil || r.o.keep) && ctx.Err() == nil {
			err = errors.Join(err, r.keep())
		}
	}()
	r.plan = schedule.New(r.o.seed, r.o.nodes, r.o.length, r.o.only...)
	if err := r.open(ctx); err != nil {
		return err
	}
	if err := r.pass(ctx); err != nil {
		return err
	}
	return errors.Join(r.judge(ctx), r.idle())
}

// idle says which kinds were begun and did nothing that could be seen. Where kinds
// were asked for by name, that is an error, and a run in which nothing was seen at all
// says nothing of the promises.
func (r *run) idle() error {
	kinds := r.nem.idle()
	if len(kinds) > 0 {
		r.diary.say("begun, and never seen to strike: %q", kinds)
	}
	switch {
	case len(r.nem.seen) == 0:
		return errors.New("nothing broke that could be seen: the run was too short, or the machine lacks too much")
	case len(kinds) > 0 && len(r.o.only) > 0:
		return fmt.Errorf("faults that were asked for did nothing: %q", kinds)
	}
	return nil
}

// occupy makes a directory, or empties it, for this run alone until leave is called.
// All else that a run makes has a name of its own: what lies in the directory for
// temporary files, and in namespaces.
// One that has something in it, and was never a run's, is left alone.
func occupy(dir string) (leave func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	leave = func() { f.Close() }
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		leave()
		return nil, fmt.Errorf("another run writes to %s (-out chooses another directory): %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == ownMark }) {
		err = fmt.Errorf("%s is not empty, and no run has made what is in it (-out chooses another directory)", dir)
		entries = nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ownMark), nil, 0o644)
	}
	if err != nil {
		leave()
	}
	return leave, err
}

// ownMark is a file in each directory that a run writes to.
const ownMark = ".holdfast-torture"

// open starts everything.
func (r *run) open(ctx context.Context) (err error) {
	arrived, err := ledger.Create(filepath.Join(r.dir, "arrived.jsonl"), ledger.Options{Sync: true})
	if err != nil {
		return err
	}
	if r.sent, err = ledger.Create(filepath.Join(r.dir, "sent.jsonl"), ledger.Options{Sync: true}); err != nil {
		return err
	}
	r.book = ledger.New()
	r.book.Tell(telling(policies(r.o.seed))...)
	r.arrived = arrived
	r.diary.say("seed %d: %d kinds of faults in %d rounds, for %v", r.o.seed, len(r.plan.Swarm), len(r.plan.Rounds), r.o.length)
	if r.cast, err = assemble(ctx, r.diary, r.dir, r.o.bin, r.o.seed, r.o.nodes, arrived, r.book); err != nil {
		return err
	}
	if err := r.invite(arrived); err != nil {
		return err
	}
	r.nem = &nemesis{cast: r.cast}
	r.nem.look()
	for _, k := range r.plan.Swarm {
		if why := r.nem.lacking(k); why != "" {
			r.diary.say("left out: %s, since this machine lacks %s", k, why)
			if r.o.strict {
				return fmt.Errorf("%q cannot be done here: %s", k, why)
			}
		}
		if why := r.cast.peer.cannot(k); why != "" {
			r.diary.say("left out: %s, since %s", k, why)
		}
	}
	if err := r.cast.open(ctx); err != nil {
		return err
	}
	for _, n := range r.cast.fleet.Nodes {
		open, err := descriptors(n.PID())
		if err != nil {
			return err
		}
		r.files = append(r.files, open)
	}
	r.diary.say("all of %d nodes are ready", r.o.nodes)
	if err := r.cast.primaryUp(); err != nil || r.cast.peer == nil {
		return err
	}
	return errors.Join(r.cast.peer.up(), r.cast.peer.greets(ctx, r.cast))
}

// invite makes the real mail server of the run, if there is one.
func (r *run) invite(arrived *ledger.Ledger) (err error) {
	if r.o.peer == (schedule.Peer{}) {
		return nil
	}
	if err := r.o.peer.Make.Lacking(r.o.unpacked); err != nil {
		r.diary.say("left out: %v, since this machine lacks it: %v", r.o.peer, err)
		if r.o.strict {
			return fmt.Errorf("%v cannot be had here: %w", r.o.peer, err)
		}
		return nil
	}
	var hosts []string
	for i := range r.o.nodes {
		hosts = append(hosts, addressNode(i).String())
	}
	r.diary.say("with %v", r.o.peer)
	r.cast.peer, err = newPeer(r.o.peer, r.diary, r.dir, r.o.unpacked, hosts, r.sent, arrived, r.book)
	return err
}

// pass lets mail pass while things break, and until all of it has.
func (r *run) pass(ctx context.Context) error {
	addresses := r.cast.fleet.Addresses()
	watching, unwatch := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer unwatch()
	watchers.Go(func() { r.watch(watching) })
	if r.cast.peer != nil {
		watchers.Go(func() { r.cast.peer.watch(watching) })
	}
	watchers.Go(func() { r.diary.mind(watching) })
	watchers.Go(func() { r.asked, r.taken = stranger(watching, r.diary, r.o.seed, addresses) })

	sending, hang := context.WithCancel(ctx)
	defer hang()
	var err error
	if r.load, err = begin(sending, r.diary, r.sent, r.book, r.o.seed, addresses, r.cast.peer); err != nil {
		return err
	}
	r.spans.From = time.Now()
	if err := r.torment(ctx); err != nil {
		return err
	}
	if err := r.rest(ctx); err != nil {
		return err
	}
	r.spans.To = time.Now()
	if err := r.load.finish(giveUpTime); err != nil {
		r.diary.breach("L8", "%v", err)
	}
	if r.cast.peer.sender() {
		if err := r.cast.peer.finish(ctx, r.cast); err != nil && ctx.Err() == nil {
			r.diary.breach("L8", "%v", err)
		}
	}
	hang()
	r.load.running.Wait()
	if err := r.drain(ctx); err != nil || !r.cast.peer.primary() {
		return err
	}
	return errors.Join(r.cast.peer.read(), r.cast.peer.excuse())
}

// rest has everything mended, and offers mail until 250s are given again.
func (r *run) rest(ctx context.Context) error {
	r.diary.say("everything is mended")
	r.cast.fabric.Heal()
	r.cast.faults.Set()
	if err := r.cast.primaryUp(); err != nil {
		return err
	}
	r.settle(ctx)
	since := time.Now()
	err := r.cast.await(ctx, resumeTime, func(context.Context) error {
		all := r.diary.acceptances()
		if len(all) == 0 || all[len(all)-1].Before(since) {
			return errors.New("no 250 since")
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.diary.breach("L8", "250s after all was mended: %v", err)
	}
	return ctx.Err()
}

// torment does what the plan says, as long as there is time.
func (r *run) torment(ctx context.Context) error {
	end := time.Now().Add(r.o.length)
	for _, round := range r.plan.Rounds {
		if ctx.Err() != nil {
			break
		}
		left := time.Until(end)
		if left < round.Lasts || left <= 0 {
			continue // a shorter one may fit
		}
		if len(round.Faults) == 0 {
			r.diary.say("%v", round)
		} else if err := r.round(ctx, round); err != nil {
			return err
		}
		wait(ctx, min(round.Rests, time.Until(end)))
	}
	return ctx.Err()
}

// round has faults begin, last, and mended.
func (r *run) round(ctx context.Context, round schedule.Round) error {
	var acts []act
	var ends []func()
	for _, f := range round.Faults {
		if r.nem.lacking(f.Kind) != "" || r.cast.peer.cannot(f.Kind) != "" {
			continue
		}
		if f.Kind.Alone() {
			// Another disk may be lost only when the last one was replaced.
			if err := r.cast.await(ctx, wholeTime, r.cast.whole); err != nil {
				r.diary.breach("L8", "copies of everything on all nodes: %v", err)
				continue
			}
		}
		end := r.diary.fault(string(f.Kind))
		a, err := r.nem.begin(ctx, f)
		if err != nil {
			return err
		}
		r.diary.say("%v for %v", a.fault, round.Lasts)
		acts, ends = append(acts, a), append(ends, end)
	}
	wait(ctx, round.Lasts)
	return r.mend(ctx, acts, ends)
}

// mend undoes a round.
func (r *run) mend(ctx context.Context, acts []act, ends []func()) error {
	var errs []error
	evidence := make([]string, len(acts))
	for i, a := range acts {
		evidence[i] = a.evidence()
	}
	for _, a := range slices.Backward(acts) {
		if a.mend != nil {
			errs = append(errs, a.mend())
		}
	}
	for i, a := range acts {
		if evidence[i] == "" {
			evidence[i] = a.evidence()
		}
		r.nem.witness(a.fault, evidence[i])
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	if err := r.restart(acts); err != nil {
		return err
	}
	ready := false
	for _, a := range acts {
		r.diary.hear(a.silent...)
	}
	for i, a := range acts {
		if a.refuses || len(a.wiped) > 0 {
			r.comeBack(ctx, a)
		}
		r.cast.diary.heal(a.harmed...)
		ends[i]()
		// Sometimes the next fault strikes before the nodes are ready again.
		ready = ready || a.fault.Kind.Alone() || a.fault.Amount%3 != 0
	}
	if ready {
		r.settle(ctx)
	}
	return ctx.Err()
}

// restart starts the nodes that do not run. By itself a node ends only where the disk
// that an act of the round broke is its own.
func (r *run) restart(round []act) error {
	for _, a := range round {
		if a.ends || a.refuses {
			for _, i := range a.harmed {
				r.mayEnd[i] = time.Now().Add(endsWithin)
				if a.refuses {
					r.mayLack[i] = r.mayEnd[i]
				}
			}
		}
	}
	for i, n := range r.cast.fleet.Nodes {
		err := fell(n)
		expected := r.endsLate(i, err)
		if err != nil && !expected {
			r.diary.breach("L8", "%s, in or after %s: %v", n.Name, named(round), err)
		}
		if err != nil && expected {
			r.diary.say("%s ended by itself, as it should", n.Name)
		}
		if n.Running() {
			continue
		}
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// endsWithin is how long after its disk was mended a node may end because of it: what
// failed may be told late.
const endsWithin = 10 * time.Second

// endsLate reports whether a node's end is of a disk that was broken on purpose.
func (r *run) endsLate(i int, err error) bool {
	now := time.Now()
	return errors.Is(err, errRefuses) && now.Before(r.mayEnd[i]) || errors.Is(err, errLacks) && now.Before(r.mayLack[i])
}

// named names the faults of a round.
func named(round []act) string {
	var names []string
	for _, a := range round {
		names = append(names, fmt.Sprintf("%q", a.fault))
	}
	return strings.Join(names, " and ")
}

// comeBack brings a node back whose disk was damaged or lost. A node that refuses
// its data directory gets an empty one.
func (r *run) comeBack(ctx context.Context, a act) {
	i := a.fault.Victim
	n := r.cast.fleet.Nodes[i]
	empty := slices.Contains(a.wiped, i)
	begin := time.Now()
	err := r.cast.await(ctx, wholeTime, func(ctx context.Context) error {
		if !n.Running() {
			err := fell(n)
			if a.refuses && !empty && (errors.Is(err, errRefuses) || errors.Is(err, errLacks)) {
				r.diary.say("%s refuses its data directory, and gets an empty one", n.Name)
				empty = true
				return errors.Join(r.nem.wipe(i), n.Start(), errors.New("just started"))
			}
			if err != nil {
				r.diary.breach("L8", "%s, after %q: %v", n.Name, a.fault, err)
			}
			return errors.Join(errors.New("it does not run"), n.Start())
		}
		err := r.cast.whole(ctx)
		if err == nil || !empty {
			return err
		}
		at := r.cast.leader(ctx)
		if at < 0 || at == i {
			return errors.Join(err, errors.New("nobody else leads"))
		}
		// Again and again: it may have been too early.
		_, adding := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[at], "members", "add", n.Name)
		return errors.Join(err, adding)
	})
	if err != nil && ctx.Err() == nil {
		r.diary.breach("L8", "%s after %q: %v", n.Name, a.fault, err)
		return
	}
	if a.mustRefuse != nil && a.mustRefuse() && !empty {
		r.diary.breach("L8", "%s took a data directory of long ago for its own", n.Name)
	}
	r.diary.say("%s is back and lacks nothing, after %.1f s (empty: %v)", n.Name, time.Since(begin).Seconds(), empty)
}

// settle waits until all nodes are ready.
func (r *run) settle(ctx context.Context) {
	begin := time.Now()
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := r.cast.await(waiting, settleTime, func(ctx context.Context) error {
		for i, n := range r.cast.fleet.Nodes {
			err := n.Fallen()
			if err == nil {
				continue
			}
			if taken := judged(err); r.endsLate(i, taken) {
				r.diary.say("%s ended by itself, as it should, a little later", n.Name)
				return errors.Join(errors.New("just started"), fell(n), n.Start())
			}
			cancel(errFell) // it does not get better
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return r.cast.fleet.Ready(ctx)
	})
	if err != nil && ctx.Err() == nil {
		r.diary.breach("L8", "nodes do not get ready when all is mended: %v", err)
		return
	}
	r.diary.say("all nodes are ready, after %.1f s", time.Since(begin).Seconds())
}

// drain waits until everything has arrived and the queue is empty everywhere.
func (r *run) drain(ctx context.Context) error {
	begin := time.Now()
	desk := &desk{run: r}
	var emptySince time.Time
	var last error // before the time was over
	lost := errors.New("no node has it any more")
	draining, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := r.cast.await(draining, drainTime, func(ctx context.Context) (why error) {
		defer func() {
			if ctx.Err() == nil {
				last = why
			}
		}()
		all := r.cast.statuses(ctx)
		if len(all) < r.o.nodes {
			return fmt.Errorf("%d of %d nodes answer", len(all), r.o.nodes)
		}
		missing, accepted := r.book.Missing()
		for i, s := range all {
			if !s.Queue.Idle() {
				emptySince = time.Time{}
				return fmt.Errorf("%s: %v; %d of %d have not arrived", r.cast.fleet.Nodes[i].Name, s.Queue, missing, accepted)
			}
		}
		if busy, err := desk.attend(ctx); err != nil || busy > 0 {
			emptySince = time.Time{}
			return errors.Join(err, fmt.Errorf("%d held messages that should not rest; %d of %d have not arrived", busy, missing, accepted))
		}
		if missing == 0 {
			return nil
		}
		if emptySince.IsZero() {
			emptySince = time.Now()
		}
		if time.Since(emptySince) > 15*time.Second {
			cancel(lost)
		}
		return fmt.Errorf("%d of %d have not arrived", missing, accepted)
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, lost):
		r.diary.say("the queue is empty, and mail is missing: %v", err)
	case err != nil:
		r.diary.breach("L8", "the queue does not drain: %v; last: %v", err, last)
	default:
		r.diary.say("the queue has drained, after %.1f s", time.Since(begin).Seconds())
	}
	r.released = desk.released
	return desk.record()
}

// reigns are who said of a term that it leads.
type reigns map[uint64]string

// rival notes that a node says so, and returns another that has said so before, "" if
// none has.
func (r reigns) rival(term uint64, node string) string {
	if other, ok := r[term]; ok && other != node {
		return other
	}
	r[term] = node
	return ""
}

// watch looks who leads, until ctx ends.
func (r *run) watch(ctx context.Context) {
	leaders := reigns{}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		who := ""
		for _, s := range r.cast.statuses(ctx) {
			if !s.IsLeader {
				continue
			}
			r.resume(ctx, s)
			if other := leaders.rival(s.Term, s.Node); other != "" {
				r.diary.breach("L6", "term %d has two leaders, %s and %s", s.Term, other, s.Node)
			}
			if s.Quorum {
				who = s.Node
			}
		}
		if ctx.Err() == nil {
			r.diary.leader(who)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// keep keeps what tells why a run failed: everything but disks.
func (r *run) keep() error {
	err := filepath.WalkDir(r.dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(r.dir, name)
		if err != nil {
			return err
		}
		to := filepath.Join(r.o.out, within)
		switch {
		case e.IsDir() && (strings.HasPrefix(within, "disk-of-") || slices.Contains([]string{"data", "ca", "tree", "queue"}, e.Name())):
			return fs.SkipDir
		case e.IsDir():
			return os.MkdirAll(to, 0o755)
		case !e.Type().IsRegular() || strings.HasSuffix(within, ".key") || strings.HasSuffix(within, ".pem"):
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	r.diary.say("kept: ledgers, configurations and logs in %s", r.o.out)
	return err
}
