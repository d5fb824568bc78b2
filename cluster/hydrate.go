package cluster

import (
	"context"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// hydrateEvery is how often a node looks whether it lacks bodies of live
// messages, provided that something happened by which it may.
const hydrateEvery = 5 * time.Second

// hydrateAgain is how often it looks without any such sign.
const hydrateAgain = 10 * time.Minute

// hydrateLoop fetches, one after the other, the bodies of live messages that
// this node lacks: it was away when they came, and has since appended their
// entries as committed ones, or restored a snapshot, and neither brings bodies.
// Without them a message would stay at the copies it had when this node left.
func (m *Member) hydrateLoop(ctx context.Context) {
	tick := time.NewTicker(hydrateEvery)
	defer tick.Stop()
	var looked time.Time
	var exempt, restores uint64
	missing := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Until the log has been applied as far as it once was, the state may list
		// messages that were finished, and freed everywhere, long ago.
		if m.space.Full() || !m.current.Load() || uint64(m.replica.appliedIndex()) < m.node.FloorAtStart() {
			continue
		}
		e, r := m.node.Stats().Exempt, m.replica.restores.Load()
		if !missing && e == exempt && r == restores && time.Since(looked) < hydrateAgain {
			continue
		}
		exempt, restores, looked = e, r, time.Now()
		missing = !m.hydrate(ctx)
	}
}

// hydrate reports whether every live body is held now.
func (m *Member) hydrate(ctx context.Context) bool {
	var got, failed int
	var last error
	for msg := range m.View().Messages(mail.QueueID{}) {
		if ctx.Err() != nil {
			return false
		}
		if msg.Finished || m.spool.Held(msg.Body) {
			continue
		}
		live := false
		m.replica.read(func(s *fsm.State) { live = s.Live(msg.ID) })
		if !live { // finished while we fetched others
			continue
		}
		if err := m.bodies.fetch(ctx, msg.Body, ""); err != nil {
			failed, last = failed+1, err
			continue
		}
		got++
	}
	if got > 0 || failed > 0 {
		m.log.Info("bodies fetched that this node lacked", "fetched", got, "failed", failed, "cause", last)
	}
	return failed == 0
}
