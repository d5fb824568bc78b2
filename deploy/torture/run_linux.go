package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/deploy/cell"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

const (
	// settleTime is how long nodes may take to be ready when all is mended.
	settleTime = 60 * time.Second
	// resumeTime is how long 250s may stay away with a healthy majority.
	resumeTime = 30 * time.Second
)

// A run is one run, from its beginning to its verdict: a cast is assembled, a load of
// mail begins, and a nemesis breaks what the plan says, round by round; then everything
// is mended, the queue drains at the desk of an operator, and what the ledgers and the
// diary hold is judged. Each of these has a file of its own.
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
	ends    ends
	// relayAsked is how often nodes were asked to relay, relayAgreed how often one would.
	relayAsked, relayAgreed int
	offered                 ledger.Span // when mail was offered to every node
	released                int         // messages that were refused before anything else was taken
	doubts                  *int        // that the nodes counted, nil where none tells
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
	watchers.Go(func() { r.relayAsked, r.relayAgreed = stranger(watching, r.diary, r.o.seed, addresses) })

	sending, hang := context.WithCancel(ctx)
	defer hang()
	var err error
	if r.load, err = begin(sending, r.diary, r.sent, r.book, r.o.seed, addresses, r.cast.peer); err != nil {
		return err
	}
	r.offered.From = time.Now()
	if err := r.torment(ctx); err != nil {
		return err
	}
	if err := r.recover(ctx); err != nil {
		return err
	}
	r.offered.To = time.Now()
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

// recover has everything mended, and offers mail until 250s are given again.
func (r *run) recover(ctx context.Context) error {
	r.diary.say("everything is mended")
	r.cast.fabric.Heal()
	r.cast.faults.Set()
	if err := r.cast.primaryUp(); err != nil {
		return err
	}
	r.settle(ctx)
	since := time.Now()
	// Whether it took too long is for weigh to say, which knows when this process stood
	// still.
	err := r.cast.await(ctx, 2*resumeTime, func(context.Context) error {
		all := r.diary.allAcks()
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
			if r.ends.expected(i, endOf(err)) {
				r.diary.say("%s ended by itself, as it should, a little later", n.Name)
				r.diary.fail(fellAt(err), i)
				defer r.diary.heal(i)
				return errors.Join(errors.New("just started"), fell(n), n.Start())
			}
			cancel(errFell) // it does not get better
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		// Ready leaves out who does not run: one may just have ended.
		err := r.cast.fleet.Ready(ctx)
		if running := len(r.cast.fleet.Running()); err == nil && running < r.o.nodes {
			err = fmt.Errorf("%d of %d nodes run", running, r.o.nodes)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		r.diary.breach("L8", "nodes do not get ready when all is mended: %v", err)
		return
	}
	r.diary.say("all nodes are ready, after %.1f s", time.Since(begin).Seconds())
}
