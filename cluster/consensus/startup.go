package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// lostNamedMax is how many lost bodies an error spells out.
const lostNamedMax = 10

// checkBodies is the start-up check: each entry above the floor that names a
// body must have it here, whole. Otherwise this node would, as a follower,
// acknowledge by its log alone a copy that it has not got, and as a leader
// could neither commit the entry nor be replaced.
func checkBodies(ctx context.Context, c Config, s *logStore, f *floor) error {
	var lost []string
	more := 0
	for _, b := range s.names.above(f.atStart) {
		if err := ctx.Err(); err != nil && lost == nil {
			return fmt.Errorf("start-up check: %w", err)
		} else if err != nil {
			break // what is lost is worth more than the rest of the list
		}
		err := c.Bodies.Verify(b.ref)
		if err == nil {
			continue
		}
		log := c.Logger.With("queue_id", b.ref.ID.String(), "index", b.index)
		log.Warn("start-up check: a body that the log names is missing or unreadable; repairing it from the other members", "error", err)
		if repair := c.Bodies.Repair(ctx, b.ref); repair != nil {
			err = errors.Join(err, repair)
		} else if err = c.Bodies.Verify(b.ref); err == nil {
			log.Info("start-up check: body repaired")
			continue
		}
		log.Error("start-up check: body not repaired", "error", err)
		if len(lost) == lostNamedMax {
			more++
			continue
		}
		lost = append(lost, fmt.Sprintf("%s (entry %d: %v)", b.ref, b.index, err))
	}
	if lost == nil {
		return nil
	}
	if more > 0 {
		lost = append(lost, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w: %s. Start another member that holds them and then this one again; "+
		"if there is none, remove this member and add it again with an empty data directory",
		ErrBodyLost, strings.Join(lost, "; "))
}
