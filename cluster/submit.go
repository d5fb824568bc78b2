package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// copiesPatience bounds how long a message waits for a majority to hold its
// body before it is refused. Nothing has been proposed by then, so the refusal
// is certain.
const copiesPatience = 20 * time.Second

// leaderPatience bounds how much longer than the majority the leader may take to
// hold a body. After that it is proposed all the same: the leader may have been
// replaced, and one that lacks the body fetches it or refuses for certain.
const leaderPatience = 300 * time.Millisecond

// unwrittenBytesMax bounds the octets of the bodies that were submitted here and
// that the spool here has not written yet. A message may be committed by the others
// before that, and then smtpd counts its memory as free: without this bound a node
// whose disk is slower than theirs would take in more and more. unwrittenOverhead
// is what a body takes beside its octets.
const (
	unwrittenBytesMax = 64 * mail.MiB
	unwrittenOverhead = 1 * mail.KiB
)

// Submit takes a message in, and the body with it: it is not the caller's any
// more. It returns nil when the message is committed, with
// the queue id that the 250 names: the message's own, or that of an earlier
// copy which it repeats. Otherwise it returns ErrNotAccepted (with ErrTooLarge
// where the envelope is too long) or ErrOutcomeUnknown.
//
// The data's way: the body is given to the spool here and pushed to the other
// voters; when the leader and a majority have it whole, the Accept is proposed at
// the leader. Each node writes the body and the entry at the same time, and
// acknowledges the entry when both are durable. ctx bounds it all; the client's
// going away must not end ctx, since a proposal cannot be taken back.
func (m *Member) Submit(ctx context.Context, e mail.Envelope, body *mail.Body) (mail.QueueID, error) {
	id, err := m.mint()
	if err != nil {
		return mail.QueueID{}, fmt.Errorf("%w: draw a queue id: %w", ErrNotAccepted, err)
	}
	ref := body.Ref(id)
	release, err := m.spread(ctx, ref, body)
	if err != nil {
		return id, err
	}
	defer release()
	m.failpoint.At("accept: body spread")
	accept := fsm.Command{Node: m.name, Action: fsm.Accept{Envelope: e, Body: ref}}
	a := acceptance{
		id:       id,
		attempt:  func(ctx context.Context) (applied, error) { return m.attempt(ctx, accept, &ref) },
		answered: func() (mail.QueueID, bool) { return m.answered(id) },
		progress: m.replica.progressed.wait,
		stopping: m.stopping,
	}
	if m.controls.Has(controls.EarlyReply) {
		go func() { _, _ = a.ask(m.life) }()
		return id, nil
	}
	return a.ask(ctx)
}

// spread gives a body to the spool here and pushes it to the others. It returns when
// its entry may be proposed, and the body is pinned here until release. The body is
// not the caller's any more. An error is ErrNotAccepted.
func (m *Member) spread(ctx context.Context, ref mail.BodyRef, body *mail.Body) (release func(), err error) {
	// The last that has it, here or at a peer, ends the body's need of memory: after
	// a majority had it, and often after the 250.
	var readers atomic.Int64
	readers.Store(2) // the spool, and we until the pushes are counted
	unread := func() {
		if readers.Add(-1) == 0 {
			body.Free()
		}
	}
	stored := func(err error) {
		if err == nil {
			unread()
		}
	}
	pushes, err := m.copies(ctx, ref, body, stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAccepted, err)
	}
	readers.Add(int64(len(pushes)))
	detach := func() {
		for _, p := range pushes {
			p.Detach(unread)
		}
		unread()
	}
	unpin, here := m.spool.Pin(ref)
	if !here {
		detach()
		return nil, fmt.Errorf("%w: body %s vanished from the spool", ErrNotAccepted, ref.ID)
	}
	return func() {
		unpin()
		detach()
	}, nil
}

// answered looks the id up in the applied state, which knows every committed
// Accept that this node has caught up with, aliases included.
func (m *Member) answered(id mail.QueueID) (mail.QueueID, bool) {
	var found fsm.Message
	var known bool
	m.replica.read(func(s *fsm.State) { found, known = s.Message(id) })
	return found.ID, known
}

// copies returns when the body is whole and on its way to stable storage here, at
// the leader and at a majority of the voters, or when the leader will see to that.
// The pushes that it returns may still be under way. Stored is called when the
// spool here needs the body no more.
//
// So many, and not only the leader: an entry whose body no majority can take would
// hold up the log, and everything behind it.
func (m *Member) copies(ctx context.Context, ref mail.BodyRef, body *mail.Body, stored func(error)) (pushes []*peer.Push, err error) {
	leader, ok := m.node.Leader()
	if !ok {
		return nil, ErrNoLeader
	}
	servers := m.node.Servers()
	c, others := newCopies(m.node.ID().Name(), leader.Name(), servers)
	acks := make(chan ack, len(servers)+1)
	defer func() {
		if err != nil {
			for _, p := range pushes {
				p.Abandon()
			}
		}
	}()
	bounded, cancel := context.WithTimeout(ctx, copiesPatience)
	defer cancel()
	written, err := m.unwritten.take(bounded, ref.Size+unwrittenOverhead)
	if err != nil {
		return nil, fmt.Errorf("the disk here is behind: %w", err)
	}
	failed := make(chan error, 1)
	begun := m.spool.PutThen(ref, body, func(err error) {
		written()
		if err != nil {
			failed <- err
		}
		stored(err)
	})
	if !begun {
		return nil, fmt.Errorf("body not stored here: %w", <-failed)
	}
	acks <- ack{c.self, nil}
	behind := c.behind(ref.Size)
	when := peer.Taken
	if behind {
		when = peer.Stored // nobody waits for it
	}
	for _, name := range others {
		pushes = append(pushes, m.peers.Push(ref, body, name, when, func(err error) { acks <- ack{name, err} }))
	}
	if behind {
		return pushes, nil
	}
	patience := time.NewTimer(copiesPatience)
	defer patience.Stop()
	var leaderLate <-chan time.Time
	for !c.enough() {
		if c.here && c.have > c.voters/2 && leaderLate == nil {
			late := time.NewTimer(leaderPatience)
			defer late.Stop()
			leaderLate = late.C
		}
		var cause error
		switch {
		case c.hopeless():
			cause = errNoMoreCopies
		default:
			select {
			case a := <-acks:
				c.count(a)
			case cause = <-failed:
			case <-leaderLate:
				return pushes, nil
			case <-patience.C:
				cause = context.DeadlineExceeded
			case <-ctx.Done():
				cause = ctx.Err()
			}
		}
		if cause != nil {
			return pushes, fmt.Errorf("body held by %d of %d voters: %w", c.have, c.voters, errors.Join(append(c.failures, cause)...))
		}
	}
	return pushes, nil
}

var errNoMoreCopies = errors.New("no other voter takes it now")

// An ack says that a node has the body, or why not.
type ack struct {
	name string
	err  error
}

// copies counts where a body is, whole. It counts nodes, by name: one that has lost
// its disk is there twice for a while, under two server ids.
type copies struct {
	self, leader string
	votes        map[string]bool // the voters' names
	voters       int
	pending      int // acks to come
	votesPending int // of which voters'

	have           int // voters that hold it
	here, atLeader bool
	failures       []error
}

// newCopies returns the count of a body that nobody holds yet, and whom else to
// give it to.
func newCopies(self, leader string, servers []consensus.Server) (c *copies, others []string) {
	c = &copies{self: self, leader: leader, votes: make(map[string]bool, len(servers)), pending: 1}
	for _, s := range servers {
		name := s.ID.Name()
		if s.Voter && !c.votes[name] {
			c.votes[name] = true
			c.voters++
		}
		if name != self && !slices.Contains(others, name) {
			others = append(others, name)
			c.pending++
		}
	}
	c.votesPending = c.voters
	return c, others
}

func (c *copies) enough() bool { return c.here && c.atLeader && c.have > c.voters/2 }

// hopeless reports whether whatever acks are still to come cannot be enough.
func (c *copies) hopeless() bool { return c.pending == 0 || c.have+c.votesPending <= c.voters/2 }

// behindBytesMax is the largest body that the leader gets with its proposal right
// behind it.
const behindBytesMax = 64 << 10

// behind reports whether the proposal may follow the body to the leader at once.
// The leader waits for the body, and has no need to say first that it is there,
// where it and this node are a majority.
func (c *copies) behind(size mail.ByteSize) bool {
	return size <= behindBytesMax && c.leader != c.self && c.votes[c.self] && c.votes[c.leader] && c.voters <= 3
}

// count takes an ack.
func (c *copies) count(a ack) {
	c.pending--
	if c.votes[a.name] {
		c.votesPending--
	}
	if a.err != nil {
		c.failures = append(c.failures, fmt.Errorf("%s: %w", a.name, a.err))
		return
	}
	if c.votes[a.name] {
		c.have++
	}
	c.atLeader = c.atLeader || a.name == c.leader
	c.here = c.here || a.name == c.self
}

// Settle notes that the client has provably read the 250 that named id.
func (m *Member) Settle(id mail.QueueID) {
	m.settled.add(id)
}

// settleIdle proposes settled ids that no other proposal has carried for
// settlePause.
func (m *Member) settleIdle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.settled.fresh:
		}
		for !m.settled.empty() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(settlePause):
			}
			for !m.settled.empty() {
				if _, err := m.proposer.do(ctx, nil, nil); err != nil {
					break
				}
			}
		}
	}
}

// settlePause is how long settled ids wait for a proposal to go with.
const settlePause = time.Second
