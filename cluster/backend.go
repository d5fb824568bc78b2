package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

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
	room   func() error
	member chan struct{} // closed once m is set
	m      *Member
}

// NewBackend returns a Backend that serves bodies from s, and refuses
// everything else until Attach. Room returns an error when the disk is too full
// for more bodies: a body refused costs a retry, a full disk costs the node.
func NewBackend(s *spool.Spool, room func() error) *Backend {
	return &Backend{spool: s, room: room, member: make(chan struct{})}
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

// StoreBody stores a body that a peer pushed; it is fsynced on return.
func (b *Backend) StoreBody(ref mail.BodyRef, chunks [][]byte) error {
	if err := b.room(); err != nil {
		return err
	}
	return b.spool.Put(ref, chunks)
}

// OpenBody serves a fetch. A body that cannot be served is looked after: where
// the log needs it, this node must get it back or make way.
func (b *Backend) OpenBody(ref mail.BodyRef) (io.ReadSeekCloser, error) {
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
func (b *Backend) Health() peer.Health {
	stats := b.spool.Stats()
	h := peer.Health{Bodies: uint64(stats.Bodies), BodyBytes: stats.BodyBytes}
	if m, ok := b.attached(); ok {
		h.ServerID = string(m.node.ID())
		ctx, cancel := context.WithTimeout(context.Background(), confirmTimeout)
		defer cancel()
		at, err := m.leaderIndex(ctx)
		h.Leader = err == nil
		h.Applied = uint64(max(at, m.replica.appliedIndex()))
		h.Term = m.node.Term()
	}
	return h
}

// Propose proposes, as leader, the command of a peer. peer.ErrNotAppended says
// that it certainly was not.
func (b *Backend) Propose(ctx context.Context, from string, command []byte, body *mail.BodyRef) ([]byte, error) {
	m, ok := b.attached()
	if !ok || !m.node.IsLeader() {
		return nil, fmt.Errorf("%w: not leading", peer.ErrNotAppended)
	}
	if err := admit(fsm.NodeName(from), command, body); err != nil {
		m.log.Error("proposal of a peer refused", "peer", from, "cause", err)
		return nil, fmt.Errorf("%w: %w", peer.ErrNotAppended, err)
	}
	if body != nil && !m.spool.Held(*body) {
		arrived := m.spool.Arrived(*body)
		m.bodies.Want(*body, "")
		select {
		case <-arrived:
		case <-time.After(backendPatience):
			return nil, fmt.Errorf("%w: the leader does not hold body %s", peer.ErrNotAppended, body.ID)
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", peer.ErrNotAppended, ctx.Err())
		}
	}
	got, err := m.proposeHere(ctx, command, body)
	switch {
	case errors.Is(err, ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", peer.ErrTooLarge, err)
	case errors.Is(err, ErrNotAccepted):
		return nil, fmt.Errorf("%w: %w", peer.ErrNotAppended, err)
	case err != nil:
		return nil, err
	}
	return fsm.EncodeResult(got.result), nil
}

// Pull serves a peer's wish for a lease.
func (b *Backend) Pull(ctx context.Context, r peer.PullRequest) (peer.PullReply, error) {
	m, ok := b.attached()
	if !ok || !m.node.IsLeader() {
		return peer.PullReply{}, dispatch.ErrNotLeading
	}
	grant, err := m.dispatcher.Pull(ctx, dispatch.Request{Holder: fsm.NodeName(r.Holder), Domain: mail.Domain(r.Domain), Max: r.Max})
	if err != nil {
		return peer.PullReply{}, err
	}
	return peer.PullReply{Token: uint64(grant.Token), Messages: grant.Messages}, nil
}
