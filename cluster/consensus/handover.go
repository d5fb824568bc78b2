package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ErrNobodyFit: no voter was reached that could lead in this node's place.
var ErrNobodyFit = errors.New("no other voter could take over")

// HandOver has another voter stand for election at once, the one that has most
// of the log among those that are fit, and returns which. Fit may be nil. The
// voter wins if it has all that is committed; nothing is lost if it does not.
//
// It sends Raft's own message for that and leaves the rest of Raft's transfer
// out: that first stops the leader, waits for the follower to catch up, and
// when anything of it gets stuck the leader refuses proposals for good
// (hashicorp/raft#696).
func (n *Node) HandOver(ctx context.Context, fit func(ServerID) bool) (ServerID, error) {
	if !n.IsLeader() {
		return "", ErrNotLeader
	}
	var others []Server
	for _, s := range n.Servers() {
		if s.Voter && s.ID != n.config.ID && (fit == nil || fit(s.ID)) {
			others = append(others, s)
		}
	}
	slices.SortStableFunc(others, func(a, b Server) int { return n.sender.progress.compare(b.ID, a.ID) })
	var failures []error
	for _, s := range others {
		if ctx.Err() != nil {
			return "", fmt.Errorf("hand over leadership: %w", context.Cause(ctx))
		}
		if err := n.transport.standNow(s); err != nil {
			failures = append(failures, err)
			continue
		}
		return s.ID, nil
	}
	return "", fmt.Errorf("%w: %w", ErrNobodyFit, errors.Join(failures...))
}

// standNow asks a server to stand for election now.
func (t *transport) standNow(s Server) error {
	var answer raft.TimeoutNowResponse
	err := t.TimeoutNow(raft.ServerID(s.ID), raftAddress(s.ID, s.Address), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(t.id),
		Addr:            t.EncodePeer(raft.ServerID(t.id), t.LocalAddr()),
	}}, &answer)
	if err != nil {
		return fmt.Errorf("ask %s to stand for election: %w", s.ID, err)
	}
	return nil
}

// A progress is how much of the log each follower is known to have, as far as
// this node sent it. It is a hint: a follower may have lost some of it again to
// another leader.
type progress struct {
	mu      sync.Mutex
	matched map[ServerID]position
}

// A position is an entry of a log.
type position struct{ term, index uint64 }

// note takes in that a follower has accepted a request.
func (p *progress) note(id ServerID, args *raft.AppendEntriesRequest) {
	last := position{args.PrevLogTerm, args.PrevLogEntry}
	if n := len(args.Entries); n > 0 {
		last = position{args.Entries[n-1].Term, args.Entries[n-1].Index}
	}
	if last.index == 0 {
		return // a heartbeat
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.matched == nil {
		p.matched = make(map[ServerID]position)
	}
	p.matched[id] = last
}

func (p *progress) compare(a, b ServerID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, y := p.matched[a], p.matched[b]
	return cmp.Or(cmp.Compare(x.term, y.term), cmp.Compare(x.index, y.index))
}

// watchDisk hands leadership over when a write hangs. The sender is silent from
// then on, so the others would elect somebody in any case, but only after their
// own timeout.
func (n *Node) watchDisk(ctx context.Context) {
	tick := time.NewTicker(n.config.HeartbeatTimeout / stallLooksPerHeartbeat)
	defer tick.Stop()
	handed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !n.Stalled() {
			handed = false
			continue
		}
		if handed || !n.IsLeader() {
			continue
		}
		handed = true
		to, err := n.HandOver(ctx, nil)
		n.config.Logger.Error("a write to this node's disk hangs: it gives up leadership", "to", to, "cause", err)
	}
}

// Stalled reports whether a write that this node's word depends on has been
// running for longer than it may.
func (n *Node) Stalled() bool {
	limit := n.config.StoreStallMax
	for _, w := range []*stopwatch{&n.log.writing, &n.log.deleting, &n.stable.writing, &n.floor.clock} {
		if w.over(limit) {
			return true
		}
	}
	return n.config.DiskStalled != nil && n.config.DiskStalled(limit)
}
