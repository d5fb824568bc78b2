package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// suspectsMax bounds the bodies that wait to be verified. What finds no
	// place is dropped: a follower that still lacks it will refuse again.
	suspectsMax = 256
	// suspectInterval is how long a body that was found whole is not read
	// again, however often a follower refuses it.
	suspectInterval = 30 * time.Second
)

// A rotWatch looks for bodies that the log names and that cannot be read any
// more. Such a body stops the whole cluster when it is the leader's, its
// entry is not committed, and nobody else has it: the leader keeps its
// leadership by healthy heartbeats, and no follower may append the entry.
type rotWatch struct {
	bodies    Bodies
	names     *names
	floor     *floor
	latch     *latch
	logger    *slog.Logger
	committed func() uint64
	suspects  chan namedBody
}

func newRotWatch(c Config, s *logStore, f *floor, l *latch) *rotWatch {
	return &rotWatch{
		bodies:   c.Bodies,
		names:    &s.names,
		floor:    f,
		latch:    l,
		logger:   c.Logger,
		suspects: make(chan namedBody, suspectsMax),
	}
}

// suspect asks for a look at a body. It never blocks.
func (w *rotWatch) suspect(b namedBody) {
	select {
	case w.suspects <- b:
	default:
	}
}

// run verifies suspects until ctx ends.
func (w *rotWatch) run(ctx context.Context) {
	whole := make(map[mail.BodyRef]time.Time) // when it was last found whole
	for {
		var b namedBody
		select {
		case <-ctx.Done():
			return
		case b = <-w.suspects:
		}
		for ref, at := range whole {
			if time.Since(at) >= suspectInterval {
				delete(whole, ref)
			}
		}
		if _, recently := whole[b.ref]; recently || !w.matters(b) {
			continue
		}
		if w.bodies.Await(b.ref) != nil {
			continue // the disk has failed, and says so elsewhere
		}
		if err := w.bodies.Verify(b.ref); err != nil {
			w.lost(ctx, b, err)
			continue
		}
		whole[b.ref] = time.Now()
	}
}

// matters reports whether the log still names the body above the floor.
func (w *rotWatch) matters(b namedBody) bool {
	return b.index > w.floor.value.Load() && w.names.has(b)
}

// lost repairs the body, or takes care that nobody counts this node's copy.
func (w *rotWatch) lost(ctx context.Context, b namedBody, cause error) {
	log := w.logger.With("queue_id", b.ref.ID.String(), "index", b.index)
	log.Error("a body that the log names cannot be read; repairing it from the other members", "error", cause)
	ctx, cancel := context.WithTimeout(ctx, repairPatience)
	defer cancel()
	err := w.bodies.Repair(ctx, b.ref)
	if err == nil {
		log.Info("body repaired")
		return
	}
	if context.Cause(ctx) == context.Canceled || !w.matters(b) {
		return // the node is shutting down, or the entry was cut off
	}
	if committed := w.committed(); b.index <= committed {
		// Others hold it, by the rule. The floor says so, and what is left is
		// this node's own copy, which hydration restores.
		if err := w.floor.raise(committed); err == nil {
			log.Warn("body not repaired; its entry is committed, so others hold it", "error", err)
			return
		}
	}
	log.Error("body not repaired and its entry not committed: this node stops, so that the others can go on without the entry", "error", err)
	_ = w.latch.fail(fmt.Errorf("%w: %s, entry %d: %w (repair: %w)", ErrBodyLost, b.ref, b.index, cause, err))
}
