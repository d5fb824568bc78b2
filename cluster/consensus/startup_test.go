package consensus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// damagedBodies are bodies that cannot be read until they are repaired, which
// peers can do from a time on. An attempt before that ends at once.
type damagedBodies struct {
	Bodies
	damaged  map[mail.BodyRef]time.Time // from when on a peer has it
	attempts int
}

var errNoPeer = errors.New("no peer to ask")

func (d *damagedBodies) Verify(ref mail.BodyRef) error {
	if _, damaged := d.damaged[ref]; damaged {
		return errors.New("damaged")
	}
	return nil
}

func (d *damagedBodies) Repair(ctx context.Context, ref mail.BodyRef) error {
	d.attempts++
	if err := ctx.Err(); err != nil {
		return err
	}
	if from := d.damaged[ref]; from.IsZero() || time.Now().Before(from) {
		return errNoPeer
	}
	delete(d.damaged, ref)
	return nil
}

// checkDamaged runs the start-up check over a log that names the bodies.
func checkDamaged(ctx context.Context, t *testing.T, bodies *damagedBodies, refs ...mail.BodyRef) error {
	t.Helper()
	s := &logStore{store: raft.NewInmemStore(), latch: newLatch()}
	for i, ref := range refs {
		if err := s.StoreLog(named(uint64(i+1), ref)); err != nil {
			t.Fatal(err)
		}
	}
	return checkBodies(ctx, Config{Bodies: bodies, Logger: testLogger("a")}, s, &floor{})
}

func threeRefs() (x, y, whole mail.BodyRef) {
	return mail.NewBody(nil).Ref(mail.QueueID{1}), mail.NewBody(nil).Ref(mail.QueueID{2}), mail.NewBody(nil).Ref(mail.QueueID{3})
}

// TestRegressionStartWaitsForItsPeers: after a power cut of all, the first to start has
// nobody to ask yet.
//
// It holds this defect: after a power cut of all nodes the first to start had nobody to
// ask for its bodies, and gave up.
func TestRegressionStartWaitsForItsPeers(t *testing.T) {
	for _, late := range []time.Duration{700 * time.Millisecond, repairPatience - time.Second} {
		synctest.Test(t, func(t *testing.T) {
			x, y, whole := threeRefs()
			began := time.Now()
			// The second comes when the patience from the start is over, and
			// not that from the first repair.
			bodies := &damagedBodies{damaged: map[mail.BodyRef]time.Time{x: began.Add(late), y: began.Add(late + repairPatience/2)}}
			if err := checkDamaged(t.Context(), t, bodies, x, whole, y); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took < late || took > late+repairPatience/2+repairPause {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestStartGivesUp when the patience is over, names all that is lost, and does
// not ask in a tight loop.
func TestStartGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y, whole := threeRefs()
		began := time.Now()
		bodies := &damagedBodies{damaged: map[mail.BodyRef]time.Time{x: {}, y: {}}}
		err := checkDamaged(t.Context(), t, bodies, x, whole, y)
		if !errors.Is(err, ErrBodyLost) || !strings.Contains(err.Error(), x.ID.String()) || !strings.Contains(err.Error(), y.ID.String()) ||
			strings.Contains(err.Error(), whole.ID.String()) || !strings.Contains(err.Error(), errNoPeer.Error()) {
			t.Errorf("start: %v", err)
		}
		if took := time.Since(began); took < repairPatience || took > repairPatience+repairPause {
			t.Errorf("gave up after %v", took)
		}
		if rounds := int(repairPatience/repairPause) + 1; bodies.attempts > 2*rounds {
			t.Errorf("%d attempts", bodies.attempts)
		}
	})
}

// TestStartIsInterrupted: a body is not called lost because somebody stops the
// node while it waits for its peers.
func TestStartIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _, _ := threeRefs()
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(time.Second, cancel)
		err := checkDamaged(ctx, t, &damagedBodies{damaged: map[mail.BodyRef]time.Time{x: {}}}, x)
		if !errors.Is(err, context.Canceled) || errors.Is(err, ErrBodyLost) || !strings.Contains(err.Error(), x.ID.String()) {
			t.Errorf("start: %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}
