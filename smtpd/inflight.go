package smtpd

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// inFlight bounds the octets of all bodies that are held in memory.
type inFlight struct {
	free     *semaphore.Weighted
	capacity mail.ByteSize
	patience time.Duration // for one wait
}

// reservationStep is what a body grows by beyond its declared SIZE. The first
// step is half of it: most mail is small.
const reservationStep = 256 * mail.KiB

func newInFlight(capacity mail.ByteSize, patience time.Duration) *inFlight {
	return &inFlight{semaphore.NewWeighted(int64(capacity)), capacity, patience}
}

// A reservation is one body's share.
type reservation struct {
	pool *inFlight
	held mail.ByteSize
}

// atLeast makes the share cover n octets. It waits for others to finish, for
// as long as the patience; then it returns false, with what was held before
// kept.
func (r *reservation) atLeast(ctx context.Context, n mail.ByteSize) bool {
	if n <= r.held {
		return true
	}
	more := n - r.held
	if !r.pool.free.TryAcquire(int64(more)) {
		ctx, cancel := context.WithTimeout(ctx, r.pool.patience)
		defer cancel()
		if r.pool.free.Acquire(ctx, int64(more)) != nil {
			return false
		}
	}
	r.held = n
	return true
}

func (r *reservation) release() {
	r.pool.free.Release(int64(r.held))
	r.held = 0
}
