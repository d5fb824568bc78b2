package consensus

import (
	"context"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// housekeep reclaims and hydrates, as the cluster room does.
func (p *process) housekeep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		p.reclaim(orphanAge)
		p.hydrate()
	}
}

// reclaim deletes the bodies that nobody needs, in the one order that is safe.
func (p *process) reclaim(orphans time.Duration) {
	applied, view := p.fsm.view()
	var candidates []mail.BodyRef
	for _, held := range p.bodies.List() {
		m, known := view[held.Ref.ID]
		if known && m.finished || !known && time.Since(held.Since) > orphans {
			candidates = append(candidates, held.Ref)
		}
	}
	drop := func(refs []mail.BodyRef) (kept, dropped []mail.BodyRef) {
		named := make(map[mail.BodyRef]bool)
		for _, ref := range p.node.BodiesNamedAbove(applied) {
			named[ref] = true
		}
		for _, ref := range refs {
			if named[ref] {
				dropped = append(dropped, ref)
			} else {
				kept = append(kept, ref)
			}
		}
		return kept, dropped
	}
	candidates, _ = drop(candidates)
	doomed := p.bodies.Doom(candidates)
	doomed, spared := drop(doomed)
	p.bodies.Spare(spared)
	if len(doomed) == 0 {
		return
	}
	if err := p.node.RaiseFloor(applied); err != nil {
		p.bodies.Spare(doomed)
		return
	}
	_ = p.bodies.Delete(doomed)
}

// hydrate asks for the live bodies that are not here.
func (p *process) hydrate() {
	applied, view := p.fsm.view()
	if applied < p.node.FloorAtStart() {
		return
	}
	for _, m := range view {
		if !m.finished && p.bodies.Verify(m.ref) != nil {
			p.bodies.WantFrom(m.ref, "")
		}
	}
}
