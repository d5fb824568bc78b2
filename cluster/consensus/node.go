package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Node is one running member of Raft. Its methods are safe for concurrent
// use.
type Node struct {
	config     Config
	raft       *raft.Raft
	transport  *transport
	sender     *sender
	gate       *gate
	log        *logStore
	stable     *stableStore
	floor      *floor
	latch      *latch
	rot        *rotWatch
	witness    *witness
	snapshots  *snapshotter
	fsm        *fsmAdapter
	leadership leadership
	notify     chan bool
	leaderNews chan struct{} // see LeaderChanged
	proposals  chan struct{} // one token per pending

	closing chan struct{} // closed when Shutdown begins
	ended   chan struct{} // closed when Raft's goroutines have ended
	stopped chan struct{} // closed when ours have, too

	mu       sync.Mutex
	closed   bool
	running  sync.WaitGroup // goroutines of ours; grows only while !closed
	closeErr error
}

// Start checks that the bodies which the log names are here, repairs what it
// can (this is what ctx bounds), and starts Raft. The node takes part in
// elections at once if it is in a configuration.
//
// The stream and the stores of c belong to the node from here on.
func Start(ctx context.Context, c Config) (_ *Node, err error) {
	var t *transport
	defer func() {
		if err == nil {
			return
		}
		if t != nil {
			_ = t.Close() // closes the stream
			t.running.Wait()
		} else if c.Stream != nil {
			_ = c.Stream.Close()
		}
		if c.Stores.Close != nil {
			_ = c.Stores.Close()
		}
	}()
	if c, err = c.withDefaults(); err != nil {
		return nil, err
	}
	if _, ok := c.Stores.Log.(attester); !ok {
		c.Bodies = heldBodies{c.Bodies}
	}
	l := newLatch()
	f, err := openFloor(c.Stores.Stable, l)
	if err != nil {
		return nil, err
	}
	f.controls = c.Controls
	n := &Node{
		config:     c,
		log:        &logStore{store: c.Stores.Log, latch: l, bodies: c.Bodies, floor: f, stored: c.stored, controls: c.Controls},
		stable:     &stableStore{store: c.Stores.Stable, latch: l},
		floor:      f,
		latch:      l,
		witness:    new(witness),
		leadership: leadership{changed: make(chan struct{})},
		notify:     make(chan bool),
		leaderNews: make(chan struct{}, 1),
		proposals:  make(chan struct{}, proposalsMax),
		closing:    make(chan struct{}),
		ended:      make(chan struct{}),
		stopped:    make(chan struct{}),
	}
	n.snapshots = &snapshotter{threshold: c.SnapshotThreshold, octets: n.log.octets.Load}
	octets, err := n.log.names.scan(n.log, newestSnapshot(c.Stores.Snapshots), c.Observe)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	n.log.octets.Store(octets)
	if !c.Controls.Has(controls.StartCheckOff) {
		if err := checkBodies(ctx, c, n.log, f); err != nil {
			return nil, err
		}
	}
	n.rot = newRotWatch(c, n.log, f, l)
	n.gate = newGate(c, f, n.log)
	n.gate.hasVote, n.gate.applied = n.hasVote, func() uint64 { return n.raft.AppliedIndex() }
	n.sender = &sender{floor: f, settled: n.log.settled, latch: l, stalled: n.Stalled, controls: c.Controls, refused: n.suspect, witness: n.witness}
	t = newTransport(c, n.gate, n.sender)
	n.transport = t
	n.fsm = &fsmAdapter{fsm: c.FSM, latch: l, log: n.log, snapshots: n.snapshots}
	n.log.leads = func() bool { return l.running.Load() && n.raft.State() == raft.Leader }
	n.raft, err = newRaft(c.raftConfig(n.notify), n.fsm, n.log, n.stable, c.Stores.Snapshots, t)
	if err != nil {
		// Raft keeps for itself why it could not load a snapshot.
		err = errors.Join(err, n.fsm.restored)
		if s, ok := c.Stores.Snapshots.(*sealedSnapshots); ok && !errors.Is(err, ErrDamaged) {
			err = errors.Join(err, s.err())
		}
		return nil, fmt.Errorf("start raft: %w", err)
	}
	n.raft.RegisterObserver(raft.NewObserver(nil, false, n.observeLeader))
	l.running.Store(true)
	t.serve()
	n.rot.committed = n.CommitIndex
	n.running.Go(n.watchLeadership)
	for _, watch := range []func(context.Context){n.rot.run, n.watchDisk, n.takeSnapshots} {
		n.running.Go(func() {
			ctx, cancel := n.lifetime()
			defer cancel()
			watch(ctx)
		})
	}
	return n, nil
}

// hasVote is for a control of the tests. The rule never asks for it.
func (n *Node) hasVote() bool {
	return n.latch.running.Load() && slices.ContainsFunc(n.Servers(), func(s Server) bool { return s.ID == n.config.ID && s.Voter })
}

// newRaft is raft.NewRaft, which panics on some errors of the stores.
func newRaft(c *raft.Config, f raft.FSM, l raft.LogStore, st raft.StableStore, sn raft.SnapshotStore, t raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return raft.NewRaft(c, f, l, st, sn, t)
}

// begin counts a goroutine in. It reports false once the node is closed.
func (n *Node) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.running.Add(1)
	return true
}

// lifetime returns a context that ends when Shutdown begins.
func (n *Node) lifetime() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	n.running.Go(func() {
		select {
		case <-n.closing:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

// Shutdown stops the node and closes its stream and stores. It returns when
// all is closed and no goroutine is left, or when ctx ends; then it goes on by
// itself. Pending proposals end with ErrOutcomeUnknown. It may be called again.
func (n *Node) Shutdown(ctx context.Context) error {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	n.mu.Unlock()
	if first {
		close(n.closing)
		go n.shutdown()
	}
	select {
	case <-n.stopped:
		return n.closeErr
	case <-ctx.Done():
		return fmt.Errorf("shut down consensus: %w", context.Cause(ctx))
	}
}

func (n *Node) shutdown() {
	defer close(n.stopped)
	// Raft's loops end first, then the connections, which frees whoever waits
	// for a peer. Only then may a failed write of the term return.
	future := n.raft.Shutdown()
	streamErr := n.transport.Close()
	close(n.latch.released)
	_ = future.Error()
	close(n.ended)
	n.log.end()
	n.transport.running.Wait()
	n.running.Wait()
	var storesErr error
	if n.config.Stores.Close != nil {
		storesErr = n.config.Stores.Close()
	}
	n.closeErr = errors.Join(streamErr, storesErr)
}

// Failed is closed when the node can no longer go on: a write to its stores
// failed (ErrDisk), an entry of its log cannot be read any more (ErrDamaged), a
// body that an uncommitted entry names is lost, or a committed entry cannot be
// understood. It gives up leadership and acknowledges nothing; the
// process should end.
func (n *Node) Failed() <-chan struct{} { return n.latch.failed }

// Err returns why Failed was closed, or nil.
func (n *Node) Err() error { return n.latch.Err() }

// ID returns the node's own server id.
func (n *Node) ID() ServerID { return n.config.ID }

// Leader returns whom this node believes to lead.
func (n *Node) Leader() (ServerID, bool) {
	_, id := n.raft.LeaderWithID()
	return ServerID(id), id != ""
}

// IsLeader reports whether this node believes that it leads.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// Reign returns the current term, and whether this node leads in it. IsLeader and Term,
// asked one after the other, may be of two terms.
func (n *Node) Reign() (term uint64, leads bool) {
	for {
		// Terms only grow, so between two readings of the same there was no other.
		term = n.Term()
		leads = n.IsLeader()
		if n.Term() == term {
			return term, leads
		}
	}
}

// Term returns the current term.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// CommitIndex returns the greatest index that this node knows to be committed
// since it started. The FSM may be behind.
func (n *Node) CommitIndex() uint64 { return n.log.settled(n.raft.CommitIndex()) }

// LastIndex returns the index of the last entry here, committed or not.
func (n *Node) LastIndex() uint64 { return n.raft.LastIndex() }

// LastContact returns when a leader was last heard of; zero when never, and
// not meaningful on the leader.
func (n *Node) LastContact() time.Time { return n.raft.LastContact() }

// Floor returns the floor: a durable index; every entry at or below it is
// committed.
func (n *Node) Floor() uint64 { return n.floor.value.Load() }

// FloorAtStart returns the floor as it was when the node started. Until the
// FSM has applied that far, it may list messages whose bodies are gone because
// they were finished later.
func (n *Node) FloorAtStart() uint64 { return n.floor.atStart }

// RaiseFloor makes the floor at least index, durably. Call it with an index
// that the FSM has applied, before a body is deleted that a finished message
// needed. An index that is not known to be committed is refused with
// ErrNotCommitted; for a moment after a snapshot was installed that may be a
// good one: try again later.
func (n *Node) RaiseFloor(index uint64) error {
	if index <= n.floor.value.Load() {
		return nil
	}
	if known := n.log.settled(max(n.raft.CommitIndex(), n.raft.AppliedIndex())); index > known {
		return fmt.Errorf("raise the floor to %d, committed is %d: %w", index, known, ErrNotCommitted)
	}
	return n.floor.raise(index)
}

// BodiesNamedAbove returns the bodies that entries above index name in this
// node's log, committed or not, in order of their entries. A body stays in the
// list until its entry is deleted durably.
func (n *Node) BodiesNamedAbove(index uint64) []mail.BodyRef {
	named := n.log.names.above(index)
	refs := make([]mail.BodyRef, len(named))
	for i, b := range named {
		refs[i] = b.ref
	}
	return refs
}

// ReportLost says that a body could not be read when it was needed. If the log
// names it above the floor it is verified, repaired from a peer, and where
// that fails and its entry is not committed, the node fails with ErrBodyLost.
// It returns at once.
func (n *Node) ReportLost(ref mail.BodyRef) {
	for _, b := range n.log.names.above(n.floor.value.Load()) {
		if b.ref == ref {
			n.rot.suspect(b)
		}
	}
}

// suspect looks after our own copies of what a follower refused. Mostly they
// are whole and the follower will get them.
func (n *Node) suspect(refused *raft.AppendEntriesRequest) {
	for _, entry := range refused.Entries {
		if entry.Index <= refused.LeaderCommitIndex {
			continue
		}
		if ref, err := bodyOf(entry); err == nil && ref != nil {
			n.rot.suspect(namedBody{entry.Index, *ref})
		}
	}
}

// Stats are counts since the start, for metrics and alarms.
type Stats struct {
	GateWaits    uint64 // requests that waited for a body
	GateRefusals uint64 // requests refused
	Malformed    uint64 // requests refused that no member sends: an attack, or a fault in a peer
	Exempt       uint64 // entries appended without their body, as committed
	ExemptIndex  uint64 // the greatest index of those entries
	FloorRaises  uint64 // requests sent with a commit index from the floor
	// RefusingSince is when the gate began to refuse without letting anything
	// pass; zero when it does not. Beyond half a minute it is an alarm: Raft's
	// channel works and that of the bodies does not.
	RefusingSince time.Time
	// StoreStalled: a write to this node's disk hangs.
	StoreStalled bool
	Proposals    int    // pending, of proposalsMax
	CutAtStart   uint64 // entries that a crash had left unsettled
	Snapshots    SnapshotStats
}

// Stats returns the counts.
func (n *Node) Stats() Stats {
	s := Stats{
		GateWaits:    n.gate.stats.waits.Load(),
		GateRefusals: n.gate.stats.refusals.Load(),
		Malformed:    n.gate.stats.malformed.Load(),
		Exempt:       n.gate.stats.exempt.Load(),
		ExemptIndex:  n.gate.stats.exemptIndex.Load(),
		FloorRaises:  n.sender.raised.Load(),
		StoreStalled: n.Stalled(),
		Proposals:    len(n.proposals),
		CutAtStart:   n.log.cut,
		Snapshots:    n.snapshots.counts(),
	}
	if since := n.gate.stats.refusingSince.Load(); since != 0 {
		s.RefusingSince = time.Unix(0, since)
	}
	return s
}
