package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/dispatch"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// backendPatience bounds how long a leader waits for the body of a proposal
// that a peer forwarded before it was pushed here.
const backendPatience = 2 * time.Second

// A Backend answers the other nodes. It exists before its Member does, because
// a node that starts must already serve the bodies it holds.
type Backend struct {
	spool  *spool.Spool
	space  Space
	member chan struct{} // closed once m is set
	m      *Member
}

// NewBackend returns a Backend that serves bodies from s, and refuses
// everything else until Attach. No body is taken while space is full: a body
// refused costs a retry, a full disk costs the node.
func NewBackend(s *spool.Spool, space Space) *Backend {
	return &Backend{spool: s, space: space, member: make(chan struct{})}
}

// Attach gives the backend its member. Call it once.
func (b *Backend) Attach(m *Member) {
	b.m = m
	close(b.member)
}

func (b *Backend) attached() (*Member, bool) {
	select {
	case <-b.member:
		return b.m, true
	default:
		return nil, false
	}
}

// StoreBodies stores bodies that a peer pushed; they are fsynced on return. Those
// that taken names can be pinned when it is called.
func (b *Backend) StoreBodies(bodies []peer.Arrived, taken func(places []int)) []error {
	errs := make([]error, len(bodies))
	if b.space.Full() {
		for i := range errs {
			errs[i] = ErrNoRoom
		}
		return errs
	}
	var storing sync.WaitGroup
	places := make([]int, 0, len(bodies))
	for i, a := range bodies {
		storing.Add(1)
		if b.spool.PutThen(a.Ref, a.Body, func(err error) {
			errs[i] = err
			storing.Done()
		}) {
			places = append(places, i)
		}
	}
	taken(places)
	storing.Wait()
	return errs
}

// OpenBody serves a fetch. A body that cannot be served is looked after: where
// the log needs it, this node must get it back or make way.
func (b *Backend) OpenBody(ref mail.BodyRef) (io.ReadSeekCloser, error) {
	_ = b.spool.Await(ref) // Open says what became of it.
	r, err := b.spool.Open(ref)
	if m, ok := b.attached(); ok && err != nil {
		m.node.ReportLost(ref)
	}
	if errors.Is(err, spool.ErrNotHeld) {
		err = fmt.Errorf("%w: %w", peer.ErrNotHeld, err)
	}
	return r, err
}

// Health tells a peer how this node is. Leader means that a majority has just
// confirmed it, so that Applied is an answer about the whole cluster.
func (b *Backend) Health(q peer.Inquiry) peer.Health {
	stats := b.spool.Stats()
	h := peer.Health{
		Bodies: uint64(stats.Bodies), BodyBytes: stats.BodyBytes,
		CommandVersion: fsm.CommandVersion, DiskLow: b.space.Low(), DiskFull: b.space.Full(),
	}
	m, ok := b.attached()
	if !ok {
		return h
	}
	h.ServerID, h.Term = string(m.node.ID()), m.node.Term()
	if q.ServerID != "" {
		h.Seen, h.SeenOK = m.seen(consensus.ServerID(q.ServerID))
	}
	if q.Brief {
		h.Leader, h.Applied = m.node.IsLeader(), uint64(m.replica.appliedIndex())
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), confirmTimeout)
		defer cancel()
		at, err := m.leaderIndex(ctx)
		h.Leader = err == nil
		h.Applied = uint64(max(at, m.replica.appliedIndex()))
	}
	// After Applied was read, so that it is true up to there.
	_, h.Hydration = m.hydrator.Report()
	h.Scrub = m.scrubber.Report()
	return h
}

var errNotRunning = errors.New("this node is starting")

// Scrub begins a scrub, or ends it, for a peer.
func (b *Backend) Scrub(from string, a peer.ScrubAction) (peer.Scrub, error) {
	m, ok := b.attached()
	if !ok {
		return peer.Scrub{}, errNotRunning
	}
	return m.Scrub("node "+from, a), nil
}

// Digest tells a peer the digest of this node's copy of the queue.
func (b *Backend) Digest(ctx context.Context, after uint64) (peer.Digest, error) {
	m, ok := b.attached()
	if !ok {
		return peer.Digest{}, errNotRunning
	}
	return m.digest(ctx, fsm.Index(after))
}

// ChangeServers changes the cluster's servers, as leader, for a peer.
func (b *Backend) ChangeServers(ctx context.Context, from string, c peer.Membership) (refusal string, err error) {
	m, ok := b.attached()
	if !ok {
		return "", fmt.Errorf("%w: %w", peer.ErrNotAppended, errNotRunning)
	}
	m.log.Info("change of the servers asked for", "by", from, "action", c.Action, "name", c.Name, "force", c.Force)
	refusal, err = m.changeHere(ctx, c)
	if errors.Is(err, ErrNotAccepted) {
		err = fmt.Errorf("%w: %w", peer.ErrNotAppended, err)
	}
	return refusal, err
}

// Propose proposes, as leader, the commands of a peer. What names a body that has
// not arrived yet is proposed when it has.
func (b *Backend) Propose(ctx context.Context, from string, proposals []peer.Proposal) []peer.Outcome {
	outcomes := make([]peer.Outcome, len(proposals))
	refuse := func(from int, cause error) {
		for i := from; i < len(outcomes); i++ {
			outcomes[i].Err = fmt.Errorf("%w: %w", peer.ErrNotAppended, cause)
		}
	}
	m, ok := b.attached()
	if !ok || !m.node.IsLeader() {
		refuse(0, errNotLeading)
		return outcomes
	}
	var open []int // which proposals are still to be made
	for i, p := range proposals {
		if err := admit(fsm.NodeName(from), p.Command, p.Body); err != nil {
			m.log.Error("proposal of a peer refused", "peer", from, "cause", err)
			outcomes[i].Err = fmt.Errorf("%w: %w", peer.ErrNotAppended, err)
			if p.Body == nil { // What follows it must not go without it.
				refuse(i+1, err)
				break
			}
			continue
		}
		open = append(open, i)
	}
	late, complete := m.proposeFor(ctx, proposals, open, outcomes)
	if len(late) > 0 && complete {
		m.awaitBodies(ctx, proposals, late)
		m.proposeFor(ctx, proposals, late, outcomes)
	}
	return outcomes
}

var errNotLeading = errors.New("not leading")

// proposeFor proposes the chosen ones of a peer's proposals and enters what came
// of them. Late are those whose body is not here; they were not appended.
// Complete says that everything that names no body took effect.
func (m *Member) proposeFor(ctx context.Context, proposals []peer.Proposal, chosen []int, outcomes []peer.Outcome) (late []int, complete bool) {
	own := make([]consensus.Proposal, len(chosen))
	for k, i := range chosen {
		own[k] = consensus.Proposal{Data: proposals[i].Command, Body: proposals[i].Body}
	}
	complete = true
	for k, a := range m.node.ProposeAll(ctx, own) {
		i := chosen[k]
		outcomes[i] = outcomeFor(a)
		switch {
		case errors.Is(a.Err, consensus.ErrBodyNotHeld):
			late = append(late, i)
		case a.Err != nil && proposals[i].Body == nil:
			complete = false
		}
	}
	return late, complete
}

// outcomeFor is what a peer is told of its proposal.
func outcomeFor(a consensus.Answer) peer.Outcome {
	o := outcomeHere(a)
	switch {
	case o.err == nil:
		return peer.Outcome{Result: fsm.EncodeResult(o.applied.result)}
	case errors.Is(o.err, ErrTooLarge):
		return peer.Outcome{Err: fmt.Errorf("%w: %w", peer.ErrTooLarge, o.err)}
	case errors.Is(o.err, ErrNotAccepted):
		return peer.Outcome{Err: fmt.Errorf("%w: %w", peer.ErrNotAppended, o.err)}
	}
	return peer.Outcome{Err: o.err}
}

// awaitBodies waits until the bodies are here, for backendPatience at most.
func (m *Member) awaitBodies(ctx context.Context, proposals []peer.Proposal, late []int) {
	ctx, cancel := context.WithTimeout(ctx, backendPatience)
	defer cancel()
	arrived := make([]<-chan struct{}, len(late))
	for k, i := range late {
		arrived[k] = m.spool.Arrived(*proposals[i].Body)
		m.bodies.Want(*proposals[i].Body, "")
	}
	for _, one := range arrived {
		select {
		case <-one:
		case <-ctx.Done():
			return
		}
	}
}

// Pull serves a peer's wish for a lease.
func (b *Backend) Pull(ctx context.Context, r peer.PullRequest) (peer.PullReply, error) {
	m, ok := b.attached()
	if !ok || !m.node.IsLeader() {
		return peer.PullReply{}, dispatch.ErrNotLeading
	}
	grant, err := m.dispatcher.Pull(ctx, dispatch.Request{
		Holder: fsm.NodeName(r.Holder), Domain: mail.Domain(r.Domain), Max: r.Max, Connections: r.Connections,
		Seen: dispatch.Feedback{Token: fsm.Token(r.Seen.Token), Answered: r.Seen.Answered, Deferred: r.Seen.Deferred, Lost: r.Seen.Lost, Mean: r.Seen.Mean},
	})
	if err != nil {
		return peer.PullReply{}, err
	}
	return peer.PullReply{Token: uint64(grant.Token), Messages: grant.Messages, Connections: grant.Connections}, nil
}
