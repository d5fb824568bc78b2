package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

const (
	// lostNamedMax is how many lost bodies an error spells out.
	lostNamedMax = 10
	// repairPause is how long the start-up check waits before it asks the peers
	// again for what they could not give.
	repairPause = 500 * time.Millisecond
)

// A damage is a body that the log names and that is not here, whole.
type damage struct {
	namedBody
	err error // of the last look at it and the last attempt to repair it
}

// checkBodies is the start-up check: each entry above the floor that names a
// body must have it here, whole. Otherwise this node would, as a follower,
// acknowledge by its log alone a copy that it has not got, and as a leader
// could neither commit the entry nor be replaced.
//
// Of what is behind the entries that the log attests, a snapshot or other servers,
// nobody has been told unless its bodies were held. Where one of those is not here
// at all, the entry and what follows it are cut off: a crash came between the
// writes of the two. (What a crash tore cannot be told from what rotted since in
// the last batch before it.)
//
// What else is not here is asked of the peers again and again until repairPatience
// has passed, since the start or the last body that was repaired: after a power
// cut of all nodes the first one has nobody to ask for a while.
func checkBodies(ctx context.Context, c Config, s *logStore, f *floor) error {
	if err := cutUnsettled(c, s, f); err != nil {
		return err
	}
	patience := time.Now().Add(repairPatience)
	var damaged []damage
	for _, b := range s.names.above(f.atStart) {
		if ctx.Err() != nil {
			break
		}
		if err := c.Bodies.Verify(b.ref); err != nil {
			c.Logger.Warn("start-up check: a body that the log names is missing or unreadable; repairing it from the other members",
				"queue_id", b.ref.ID.String(), "index", b.index, "error", err)
			damaged = append(damaged, damage{b, err})
		}
	}
	for len(damaged) > 0 && ctx.Err() == nil {
		left := repairRound(ctx, c, damaged, patience)
		if len(left) < len(damaged) {
			patience = time.Now().Add(repairPatience)
		} else if !time.Now().Before(patience) {
			break
		}
		damaged = left
		if len(damaged) > 0 {
			select {
			case <-time.After(min(repairPause, time.Until(patience))):
			case <-ctx.Done():
			}
		}
	}
	if len(damaged) == 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("start-up check: %w", context.Cause(ctx))
		}
		return nil
	}
	if context.Cause(ctx) == context.Canceled {
		return fmt.Errorf("start-up check: %w while it waited for %s", context.Canceled, listed(damaged))
	}
	for _, d := range damaged {
		c.Logger.Error("start-up check: body not repaired", "queue_id", d.ref.ID.String(), "index", d.index, "error", d.err)
	}
	return fmt.Errorf("%w: %s. Start another member that holds them and then this one again; "+
		"if there is none, remove this member and add it again with an empty data directory",
		ErrBodyLost, listed(damaged))
}

// cutUnsettled cuts off the entries that no acknowledgement covers, from the first
// one on whose body is not here.
func cutUnsettled(c Config, s *logStore, f *floor) error {
	log, ok := s.store.(attester)
	if !ok {
		return nil
	}
	attested := log.Attested()
	if c.Controls.Has(controls.CutsAll) {
		attested = 0
	}
	// A snapshot was taken of what was settled, and the log must not end before it.
	for _, b := range s.names.above(max(f.atStart, attested, c.Acknowledged, newestSnapshot(c.Stores.Snapshots))) {
		if c.Bodies.Held(b.ref) {
			continue
		}
		last, err := s.LastIndex()
		if err != nil {
			return fmt.Errorf("last index of the log: %w", err)
		}
		c.Logger.Warn("start-up check: a crash came before the body of an entry was on the disk, and nobody was told of the entry; cutting it off, with what follows",
			"queue_id", b.ref.ID.String(), "index", b.index, "last_index", last, "attested", attested)
		if err := s.DeleteRange(b.index, last); err != nil {
			return fmt.Errorf("cut off entries %d to %d: %w", b.index, last, err)
		}
		s.cut = last - b.index + 1
		return nil
	}
	return nil
}

// repairRound tries once to repair each body, and returns what is still
// damaged.
func repairRound(ctx context.Context, c Config, damaged []damage, until time.Time) (left []damage) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for _, d := range damaged {
		if ctx.Err() == nil {
			d.err = repair(ctx, c, d)
		}
		if d.err == nil {
			c.Logger.Info("start-up check: body repaired", "queue_id", d.ref.ID.String(), "index", d.index)
			continue
		}
		left = append(left, d)
	}
	return left
}

func repair(ctx context.Context, c Config, d damage) error {
	failed := c.Bodies.Repair(ctx, d.ref)
	if err := c.Bodies.Verify(d.ref); err != nil {
		return errors.Join(err, failed)
	}
	return nil // also when it came by another route
}

// listed names the damaged bodies, the first ones with what is wrong.
func listed(damaged []damage) string {
	var names []string
	for _, d := range damaged[:min(len(damaged), lostNamedMax)] {
		names = append(names, fmt.Sprintf("%s (entry %d: %v)", d.ref, d.index, d.err))
	}
	if more := len(damaged) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, "; ")
}
