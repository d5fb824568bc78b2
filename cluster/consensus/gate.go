package consensus

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// errRefused is how a refusal reads at the leader, which sees only its text.
const errRefused = "append rule"

// doomedRetry is how long the gate waits before it asks again for a body that
// is held but about to be deleted.
const doomedRetry = 20 * time.Millisecond

// A gate keeps the append rule on the receiving side. Before Raft sees a request,
// every body that its entries name is here and pinned until Raft has answered, or
// the entry is known to be committed and the floor says so. And before the sender
// sees Raft's yes, entries and bodies are on stable storage.
//
// It lets a request pass whole or answers an error. It never shortens one, save
// by what was applied here already (covered.go): the leader counts all that it
// sent. And it never answers Success false: the leader would walk back entry by
// entry.
//
// It asks for no suffrage. A nonvoter's first success after its promotion
// counts its whole log.
type gate struct {
	bodies    Bodies
	floor     *floor
	log       *logStore
	applied   func() uint64 // the last entry that Raft counts as applied here
	passed    chan raft.RPC
	waiting   chan struct{} // one token per request at the gate
	stop      <-chan struct{}
	controls  controls.Set
	failpoint controls.Failpoint
	hasVote   func() bool // for a control only
	logger    *slog.Logger
	stats     gateStats
	// unlogged is how many malformed requests were refused since loggedAt, when
	// the last one was logged. Only the pump uses them.
	unlogged uint64
	loggedAt time.Time
}

type gateStats struct {
	waits, refusals, exempt, malformed atomic.Uint64
	// exemptIndex is the greatest index of an entry that passed without its body.
	exemptIndex atomic.Uint64
	// refusingSince is when the gate began to refuse without letting any
	// request pass, in Unix nanoseconds; zero when it does not.
	refusingSince atomic.Int64
}

// raise makes v at least n.
func raise(v *atomic.Uint64, n uint64) {
	for was := v.Load(); was < n && !v.CompareAndSwap(was, n); was = v.Load() {
	}
}

func newGate(c Config, f *floor, log *logStore) *gate {
	return &gate{
		bodies:    c.Bodies,
		floor:     f,
		log:       log,
		passed:    make(chan raft.RPC),
		waiting:   make(chan struct{}, gateRequestsMax),
		controls:  c.Controls,
		failpoint: c.Failpoint,
		logger:    c.Logger,
	}
}

// malformedLogInterval is how often a malformed request is logged: a member
// that sends one may send many.
const malformedLogInterval = time.Minute

// refuseMalformed answers a request that no member sends. It must not block.
func (g *gate) refuseMalformed(running *sync.WaitGroup, rpc raft.RPC, err error) {
	g.stats.malformed.Add(1)
	g.unlogged++
	if now := time.Now(); now.Sub(g.loggedAt) >= malformedLogInterval {
		var from []byte
		if r, ok := rpc.Command.(raft.WithRPCHeader); ok {
			from = r.GetRPCHeader().ID
		}
		g.logger.Error("a member sends what no member sends; refused", "says_it_is", string(from[:min(len(from), senderBytesMax)]),
			"requests", g.unlogged, "error", err)
		g.unlogged, g.loggedAt = 0, now
	}
	if rpc.Reader == nil {
		rpc.Respond(nil, err)
		return
	}
	// The data of a snapshot has to be read away, or it would be taken for
	// requests. The connection bounds how much that is.
	running.Go(func() {
		_, _ = io.Copy(io.Discard, rpc.Reader)
		rpc.Respond(nil, err)
	})
}

// forward gives a request to Raft as it is.
func (g *gate) forward(rpc raft.RPC) {
	select {
	case g.passed <- rpc:
	case <-g.stop:
	}
}

// admit decides on a request with entries, in its own goroutine.
func (g *gate) admit(running *sync.WaitGroup, rpc raft.RPC, req *raft.AppendEntriesRequest) {
	select {
	case g.waiting <- struct{}{}:
	default:
		rpc.Respond(nil, fmt.Errorf("%s: %d requests are waiting already", errRefused, gateRequestsMax))
		return
	}
	running.Go(func() {
		defer func() { <-g.waiting }()
		req := g.withoutCovered(req)
		rpc.Command = req
		g.handle(rpc, req)
	})
}

func (g *gate) handle(rpc raft.RPC, req *raft.AppendEntriesRequest) {
	release, err := g.hold(req)
	defer release()
	if err != nil {
		if errors.Is(err, ErrShutdown) {
			return
		}
		g.stats.refusals.Add(1)
		g.stats.refusingSince.CompareAndSwap(0, time.Now().UnixNano())
		rpc.Respond(nil, fmt.Errorf("%s: %w", errRefused, err))
		return
	}
	g.stats.refusingSince.Store(0)
	g.failpoint.At("follower: bodies here")
	// Raft answers us, so that we know when the pins may go.
	g.relay(rpc)
}

// relay gives a request to Raft and Raft's answer to the sender. It returns the
// answer, false when Raft did not take the request because the node stops. Once
// Raft has taken it, it answers, stopping or not; until then it may be storing
// the entries.
func (g *gate) relay(rpc raft.RPC) (raft.RPCResponse, bool) {
	answered := make(chan raft.RPCResponse, 1)
	answer := rpc.RespChan
	rpc.RespChan = answered
	select {
	case g.passed <- rpc:
	case <-g.stop:
		return raft.RPCResponse{}, false
	}
	a := <-answered
	// Raft says that the entries are in the log. The leader will take it for more.
	if r, ok := a.Response.(*raft.AppendEntriesResponse); ok && r.Success {
		if err := g.log.awaitAll(); err != nil {
			a = raft.RPCResponse{Error: err}
		}
		g.failpoint.At("follower: entries settled")
	}
	answer <- a
	return a, true
}

// hold pins every body that the request names, waiting for those that are not
// here, and makes the floor cover what it exempts. Release may be called in
// any case, once.
func (g *gate) hold(req *raft.AppendEntriesRequest) (release func(), err error) {
	var pins []func()
	release = func() {
		for _, unpin := range pins {
			unpin()
		}
	}
	var missing []mail.BodyRef
	exempt := false
	for _, entry := range req.Entries {
		ref, err := bodyOf(entry)
		if err != nil {
			return release, err
		}
		if ref == nil {
			continue
		}
		if unpin, held := g.bodies.Pin(*ref); held {
			pins = append(pins, unpin)
			continue
		}
		if entry.Index <= req.LeaderCommitIndex {
			exempt = true
			g.stats.exempt.Add(1)
			raise(&g.stats.exemptIndex, entry.Index)
			continue
		}
		missing = append(missing, *ref)
	}
	if g.controls.Has(controls.RuleOff) || g.controls.Has(controls.NonvotersSpared) && !g.hasVote() {
		return release, nil
	}
	if exempt {
		// The commit index itself and not the last exempt entry, so that one
		// write covers a whole catch-up. It is true whatever the sender's term
		// is; a stale leader's commit index is still committed.
		if err := g.floor.raise(req.LeaderCommitIndex); err != nil {
			return release, err
		}
	}
	if len(missing) == 0 {
		return release, nil
	}
	g.stats.waits.Add(1)
	leader := ServerID(req.ID)
	for _, ref := range missing {
		g.bodies.Want(ref, leader)
	}
	timeout := time.NewTimer(gateWait)
	defer timeout.Stop()
	for _, ref := range missing {
		unpin, err := g.await(ref, leader, timeout.C)
		if err != nil {
			return release, err
		}
		pins = append(pins, unpin)
	}
	return release, nil
}

// await pins a body once it has arrived by any route.
func (g *gate) await(ref mail.BodyRef, leader ServerID, timeout <-chan time.Time) (unpin func(), err error) {
	for {
		select {
		case <-g.bodies.Arrived(ref):
		case <-timeout:
			return nil, fmt.Errorf("body %s has not arrived within %v", ref, gateWait)
		case <-g.stop:
			return nil, ErrShutdown
		}
		if unpin, held := g.bodies.Pin(ref); held {
			return unpin, nil
		}
		// It arrived and is being deleted as an orphan. Once it is gone, it
		// can be fetched again.
		select {
		case <-time.After(doomedRetry):
		case <-timeout:
			return nil, fmt.Errorf("body %s is being deleted", ref)
		case <-g.stop:
			return nil, ErrShutdown
		}
		g.bodies.Want(ref, leader)
	}
}
