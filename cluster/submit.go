package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

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

// Submit takes a message in. It returns nil when the message is committed, with
// the queue id that the 250 names: the message's own, or that of an earlier
// copy which it repeats. Otherwise it returns ErrNotAccepted (with ErrTooLarge
// where the envelope is too long) or ErrOutcomeUnknown.
//
// The data's way: the body is fsynced here and pushed to the other voters; when
// the leader and a majority hold it, the Accept is proposed at the leader. ctx
// bounds it all; the client's going away must not end ctx, since a proposal
// cannot be taken back.
func (m *Member) Submit(ctx context.Context, e mail.Envelope, body *mail.Body) (mail.QueueID, error) {
	id, err := m.mint()
	if err != nil {
		return mail.QueueID{}, fmt.Errorf("%w: draw a queue id: %w", ErrNotAccepted, err)
	}
	ref := body.Ref(id)
	if err := m.copies(ctx, ref, body.Chunks()); err != nil {
		return id, fmt.Errorf("%w: %w", ErrNotAccepted, err)
	}
	release, held := m.spool.Pin(ref)
	if !held {
		return id, fmt.Errorf("%w: body %s vanished from the spool", ErrNotAccepted, id)
	}
	defer release()
	accept := fsm.Command{Node: m.name, Action: fsm.Accept{Envelope: e, Body: ref}}
	return acceptance{
		id:       id,
		attempt:  func(ctx context.Context) (applied, error) { return m.attempt(ctx, accept, &ref) },
		answered: func() (mail.QueueID, bool) { return m.answered(id) },
		progress: m.replica.progressed.wait,
		stopping: m.stopping,
	}.ask(ctx)
}

// answered looks the id up in the applied state, which knows every committed
// Accept that this node has caught up with, aliases included.
func (m *Member) answered(id mail.QueueID) (mail.QueueID, bool) {
	var found fsm.Message
	var known bool
	m.replica.read(func(s *fsm.State) { found, known = s.Message(id) })
	return found.ID, known
}

// copies returns when the body is on stable storage here, at the leader and at
// a majority of the voters. Pushes that are still under way then go on.
func (m *Member) copies(ctx context.Context, ref mail.BodyRef, chunks [][]byte) error {
	leader, ok := m.node.Leader()
	if !ok {
		return ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, copiesPatience)
	voters := 0
	type ack struct {
		name string
		err  error
	}
	servers := m.node.Servers()
	acks := make(chan ack, len(servers)+1)
	pending := 1
	go func() { acks <- ack{m.node.ID().Name(), m.spool.Put(ref, chunks)} }()
	votes := map[string]bool{}
	for _, s := range servers {
		if s.Voter {
			voters++
			votes[s.ID.Name()] = true
		}
		if s.ID == m.node.ID() {
			continue
		}
		pending++
		go func() { acks <- ack{s.ID.Name(), m.peers.Push(ctx, ref, chunks, s.ID.Name())} }()
	}
	// The pushes to a slow peer outlive this call, but not its patience: a
	// follower that gets the body late still spares its gate a fetch.
	defer func() {
		go func() {
			for ; pending > 0; pending-- {
				<-acks
			}
			cancel()
		}()
	}()
	have, atLeader, here := 0, false, false
	var failures []error
	var leaderLate <-chan time.Time
	for pending > 0 && !(here && atLeader && have > voters/2) {
		if here && have > voters/2 && leaderLate == nil {
			late := time.NewTimer(leaderPatience)
			defer late.Stop()
			leaderLate = late.C
		}
		var a ack
		select {
		case a = <-acks:
		case <-leaderLate:
			return nil
		}
		pending--
		if a.err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", a.name, a.err))
			if a.name == m.node.ID().Name() {
				return errors.Join(failures...)
			}
			continue
		}
		if votes[a.name] {
			have++
		}
		atLeader = atLeader || a.name == leader.Name()
		here = here || a.name == m.node.ID().Name()
	}
	if !here || have <= voters/2 {
		return fmt.Errorf("body held by %d of %d voters: %w", have, voters, errors.Join(failures...))
	}
	return nil
}

// Settle notes that the client has provably read the 250 that named id.
func (m *Member) Settle(id mail.QueueID) {
	m.settled.add(id)
}

// settleIdle proposes settled ids that no other proposal has carried for a
// second.
func (m *Member) settleIdle(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for !m.settled.empty() {
			if _, err := m.attempt(ctx, fsm.Command{Node: m.name, Action: fsm.Settle{}}, nil); err != nil {
				break
			}
		}
	}
}
