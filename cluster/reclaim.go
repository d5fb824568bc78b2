package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// reclaimEvery is how often finished bodies are looked for.
const reclaimEvery = 5 * time.Second

// reclaimBatchMax bounds the bodies freed in one round.
const reclaimBatchMax = 10_000

// reclaimLoop frees bodies until ctx ends.
func (m *Member) reclaimLoop(ctx context.Context) {
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n, err := m.reclaim()
		if errors.Is(err, consensus.ErrNotCommitted) {
			continue
		}
		if err != nil {
			m.log.Error("bodies not freed", "cause", err)
		} else if n > 0 {
			m.log.Debug("bodies freed", "count", n)
		}
	}
}

// reclaim deletes the bodies of finished messages, and of those that no entry
// has named for an orphan's age. The order is the append rule's
// (docs/architecture.md): look at the state, drop what the log above it names,
// doom what nobody has pinned, look at the log once more, make the floor cover
// the state, delete. The floor comes before the deletion because, after a
// restart, it is what allows a peer that lags to append the entry without its
// body.
func (m *Member) reclaim() (int, error) {
	view := m.View()
	at := view.Applied()
	if at == 0 {
		return 0, nil
	}
	now := m.now()
	var candidates []mail.QueueID
	for _, b := range m.spool.Bodies() {
		if finished(view, b.Ref.ID, now.Sub(b.Since) >= m.orphanAge) {
			candidates = append(candidates, b.Ref.ID)
			if len(candidates) == reclaimBatchMax {
				break
			}
		}
	}
	named := m.namedAbove(at)
	candidates = without(candidates, named)
	if len(candidates) == 0 {
		return 0, m.keepFloorClose(at)
	}
	doomed := m.spool.Doom(candidates)
	// An entry appended between the first look and the doom may name one of
	// them; from here on a doomed body cannot be pinned, so none can be appended.
	named = m.namedAbove(at)
	var spared, dying []mail.BodyRef
	for _, ref := range doomed {
		if named[ref.ID] {
			spared = append(spared, ref)
		} else {
			dying = append(dying, ref)
		}
	}
	m.spool.Spare(spared)
	if len(dying) == 0 {
		return 0, nil
	}
	if err := m.raiseFloor(at); err != nil {
		m.spool.Spare(dying)
		return 0, err
	}
	if err := m.spool.Delete(dying); err != nil {
		return 0, fmt.Errorf("delete %d bodies: %w", len(dying), err)
	}
	return len(dying), nil
}

// floorLagMax is how many entries the floor may fall behind while no body is
// freed. A node that starts reads every body that its log names above the
// floor.
const floorLagMax = 1000

func (m *Member) keepFloorClose(at fsm.Index) error {
	if uint64(at) < m.node.Floor()+floorLagMax {
		return nil
	}
	return m.raiseFloor(at)
}

// raiseFloor makes the floor cover at, which this node has applied. For a moment
// after a snapshot was installed consensus does not know that it is committed:
// the next round will do.
func (m *Member) raiseFloor(at fsm.Index) error {
	if err := m.node.RaiseFloor(uint64(at)); err != nil {
		return fmt.Errorf("raise the floor to %d: %w", at, err)
	}
	return nil
}

// finished reports whether nobody needs the body of id by this view: its
// message has ended or was a repeat, or no entry has named it and it is old.
func finished(view *fsm.State, id mail.QueueID, old bool) bool {
	if view.Live(id) {
		return false
	}
	return view.Known(id) || old
}

func (m *Member) namedAbove(at fsm.Index) map[mail.QueueID]bool {
	named := map[mail.QueueID]bool{}
	for _, ref := range m.node.BodiesNamedAbove(uint64(at)) {
		named[ref.ID] = true
	}
	return named
}

func without(ids []mail.QueueID, excluded map[mail.QueueID]bool) []mail.QueueID {
	kept := ids[:0]
	for _, id := range ids {
		if !excluded[id] {
			kept = append(kept, id)
		}
	}
	return kept
}
