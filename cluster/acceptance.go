package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// certainPatience bounds how long a message is proposed again after certain
// refusals, which is what an election looks like. A sender would rather try
// the next MX than wait longer.
const certainPatience = 15 * time.Second

// An acceptance is the way of one Accept from its first proposal to an answer.
//
// Invariant: once an attempt has ended with an unknown outcome, the answer is a
// queue id or ErrOutcomeUnknown, never a certain refusal, whatever later
// attempts say: the first may still be committed, and what was refused must
// never be delivered.
type acceptance struct {
	id mail.QueueID
	// attempt proposes once. Its error is ErrNotAccepted or ErrOutcomeUnknown.
	attempt func(context.Context) (applied, error)
	// answered looks the id up in the applied state: under which id the message
	// is known, if it is.
	answered func() (mail.QueueID, bool)
	// progress returns a channel that is closed when the applied state changes.
	progress func() <-chan struct{}
	stopping <-chan struct{}
}

// ask proposes, again and again under the same id, until there is an answer.
func (a acceptance) ask(ctx context.Context) (mail.QueueID, error) {
	unknown := false
	var last error
	giveUp := time.Now().Add(certainPatience)
	for {
		progress := a.progress()
		if id, known := a.answered(); known {
			return id, nil
		}
		got, err := a.attempt(ctx)
		switch {
		case err == nil && (got.result.Verdict == fsm.Done || got.result.Verdict == fsm.Repeat):
			return got.result.ID, nil
		case err == nil && !unknown:
			// Committed, and refused by every replica alike.
			return a.id, fmt.Errorf("%w: %s", ErrNotAccepted, got.result.Text)
		case err == nil:
			last = fmt.Errorf("refused after an unknown outcome: %s", got.result.Text)
		case errors.Is(err, ErrOutcomeUnknown):
			unknown, last = true, err
		case errors.Is(err, ErrTooLarge) && !unknown:
			return a.id, err
		default:
			last = err
		}
		if !unknown && time.Now().After(giveUp) {
			return a.id, last
		}
		if id, known := a.await(ctx, progress); known {
			return id, nil
		}
		if ctx.Err() == nil && !isClosed(a.stopping) {
			continue
		}
		if unknown {
			// The cause is for the log; it must not make the error look certain.
			return a.id, fmt.Errorf("%w: %v", ErrOutcomeUnknown, last)
		}
		return a.id, last
	}
}

// await watches the applied state for a retryPause, or until ctx or the member
// ends. progress is a wait that was taken before the last look.
func (a acceptance) await(ctx context.Context, progress <-chan struct{}) (mail.QueueID, bool) {
	pause := time.NewTimer(retryPause)
	defer pause.Stop()
	for {
		if id, known := a.answered(); known {
			return id, true
		}
		select {
		case <-progress:
			progress = a.progress()
		case <-pause.C:
			return mail.QueueID{}, false
		case <-ctx.Done():
			return mail.QueueID{}, false
		case <-a.stopping:
			return mail.QueueID{}, false
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
