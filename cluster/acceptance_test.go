package cluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An answer is what one attempt ends with.
type answer struct {
	applied applied
	err     error
}

var (
	accepted  = answer{applied: applied{result: fsm.Result{Verdict: fsm.Done, ID: idOf(1)}}}
	repeated  = answer{applied: applied{result: fsm.Result{Verdict: fsm.Repeat, ID: idOf(7)}}}
	declined  = answer{applied: applied{result: fsm.Result{Verdict: fsm.Refused, Text: "no such domain"}}}
	notThere  = answer{err: fmt.Errorf("%w: no leader", ErrNotAccepted)}
	tooLarge  = answer{err: fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)}
	undecided = answer{err: fmt.Errorf("%w: leadership lost", ErrOutcomeUnknown)}
)

// asked runs an acceptance over scripted attempts, the last one repeated, for at
// most a minute. known, if not nil, is when and as what the applied state comes
// to know the message.
func asked(t *testing.T, script []answer, knownAfter time.Duration, knownAs mail.QueueID) (id mail.QueueID, err error, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n := 0
		id, err = acceptance{
			id: idOf(1),
			attempt: func(context.Context) (applied, error) {
				a := script[min(n, len(script)-1)]
				n++
				return a.applied, a.err
			},
			answered: func() (mail.QueueID, bool) {
				return knownAs, !knownAs.IsZero() && time.Since(began) >= knownAfter
			},
			progress: func() <-chan struct{} { return nil },
			stopping: make(chan struct{}),
		}.ask(ctx)
		took = time.Since(began)
	})
	return id, err, took
}

func TestAcceptanceAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		script []answer
		want   error // nil: accepted
		id     mail.QueueID
	}{
		{"accepted at once", []answer{accepted}, nil, idOf(1)},
		{"a repeat has the first one's id", []answer{repeated}, nil, idOf(7)},
		{"accepted after an election", []answer{notThere, notThere, accepted}, nil, idOf(1)},
		{"accepted after an unknown outcome", []answer{undecided, accepted}, nil, idOf(1)},
		{"refused by every replica", []answer{declined}, ErrNotAccepted, idOf(1)},
		{"certainly never appended", []answer{notThere}, ErrNotAccepted, idOf(1)},
		{"too large", []answer{tooLarge}, ErrTooLarge, idOf(1)},
		{"unknown to the end", []answer{undecided}, ErrOutcomeUnknown, idOf(1)},
		// Unknown is sticky: the first attempt may still be committed.
		{"unknown, then certain", []answer{undecided, notThere}, ErrOutcomeUnknown, idOf(1)},
		{"unknown, then refused", []answer{undecided, declined}, ErrOutcomeUnknown, idOf(1)},
		{"unknown, then too large", []answer{undecided, tooLarge}, ErrOutcomeUnknown, idOf(1)},
		{"certain, unknown, certain", []answer{notThere, undecided, notThere}, ErrOutcomeUnknown, idOf(1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err, took := asked(t, c.script, 0, mail.QueueID{})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || id != c.id {
				t.Fatalf("%s, %v after %s; want %s, %v", id, err, took, c.id, c.want)
			}
			certain := errors.Is(err, ErrNotAccepted) || errors.Is(err, ErrTooLarge)
			if errors.Is(c.want, ErrOutcomeUnknown) && certain {
				t.Errorf("%v passes for a certain refusal", err)
			}
			if took > time.Minute+time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// What this node has applied itself is an answer too, as good as the leader's.
func TestAcceptanceIsAnsweredByTheAppliedState(t *testing.T) {
	for name, script := range map[string][]answer{"unknown": {undecided}, "certain": {notThere}} {
		id, err, _ := asked(t, script, 3*time.Second, idOf(9))
		if err != nil || id != idOf(9) {
			t.Errorf("%s: %s, %v; want the id that the state knows", name, id, err)
		}
	}
}

func TestAcceptanceEndsWithTheMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopping := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(stopping) })
		for name, a := range map[string]answer{"unknown": undecided, "certain": notThere} {
			_, err := acceptance{
				id:       idOf(1),
				attempt:  func(context.Context) (applied, error) { return a.applied, a.err },
				answered: func() (mail.QueueID, bool) { return mail.QueueID{}, false },
				progress: func() <-chan struct{} { return nil },
				stopping: stopping,
			}.ask(t.Context())
			if want := errors.Is(a.err, ErrOutcomeUnknown); err == nil || errors.Is(err, ErrOutcomeUnknown) != want {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
