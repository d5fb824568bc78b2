package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestControlEarlyDelete: a follower has acknowledged an entry and does not know
// yet that it is committed. However old its body is, it stays: the leader may have
// said 250 on the strength of it.
func TestControlEarlyDelete(t *testing.T) {
	trial.Run(t, controls.EarlyDelete, func(t *testing.T, on controls.Set) error {
		w := newReclaimWorld(t)
		w.r.bodies, w.r.controls = w.Spool, on
		ref := w.put(1)
		w.named = []mail.BodyRef{ref}
		w.clock = w.clock.Add(testOrphanAge + time.Hour)
		if _, err := w.r.round(); err != nil {
			t.Fatal(err)
		}
		if !w.Held(ref) {
			return errors.New("the body of an acknowledged entry is gone")
		}
		return nil
	})
}
