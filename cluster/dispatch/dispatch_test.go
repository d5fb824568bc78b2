package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const domain = mail.Domain("example.org")

func idOf(n int) mail.QueueID { return mail.MintQueueID(uint64(n), [10]byte{}) }

// A queue is the replicated queue of a leader that commits at once, unless it
// is told to fail.
type queue struct {
	t     *testing.T
	state *fsm.State
	index fsm.Index
	fail  func(fsm.Action) error
	seen  []fsm.Action // what was committed
}

func newQueue(t *testing.T, messages int) *queue {
	q := &queue{t: t, state: fsm.New()}
	q.commit(fsm.PutDomain{Domain: fsm.Domain{Name: domain, MX: true}})
	for n := 1; n <= messages; n++ {
		body := mail.NewBody(fmt.Append(nil, "message ", n))
		q.commit(fsm.Accept{Body: body.Ref(idOf(n)), Envelope: mail.Envelope{Recipients: []mail.Recipient{{
			Path:   mail.ForwardPath{Mailbox: mail.Mailbox{Local: "u", Host: string(domain)}},
			Domain: domain,
		}}}})
	}
	q.seen = nil
	return q
}

func (q *queue) commit(a fsm.Action) (fsm.Index, fsm.Result) {
	q.t.Helper()
	q.index++
	result, _ := q.state.Apply(q.index, fsm.Command{Node: "leader", Action: a})
	if result.Verdict != fsm.Done {
		q.t.Fatalf("%T: %s", a, result.Text)
	}
	q.seen = append(q.seen, a)
	return q.index, result
}

func (q *queue) View() *fsm.State { return q.state.Snapshot() }

func (q *queue) Propose(_ context.Context, a fsm.Action) (fsm.Index, fsm.Result, error) {
	if q.fail != nil {
		if err := q.fail(a); err != nil {
			return 0, fsm.Result{}, err
		}
	}
	index, result := q.commit(a)
	return index, result, nil
}

func newDispatcher(q Queue) *Dispatcher {
	return New(Config{
		Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second,
		LeaseBatchMax: 4, TickEvery: 5 * time.Second,
	})
}

func TestPlanIsOldestFirstAndBounded(t *testing.T) {
	q := newQueue(t, 10)
	for _, c := range []struct{ asked, limit, want int }{{3, 64, 3}, {64, 4, 4}, {64, 64, 10}, {0, 64, 0}, {-1, 64, 0}} {
		got := Plan(q.View(), Request{Holder: "n1", Domain: domain, Max: c.asked}, c.limit)
		if len(got) != c.want || !slices.IsSortedFunc(got, mail.QueueID.Compare) || len(got) > 0 && got[0] != idOf(1) {
			t.Errorf("asked for %d of at most %d: planned %v, want the %d oldest", c.asked, c.limit, got, c.want)
		}
	}
	if got := Plan(q.View(), Request{Holder: "n1", Domain: "other.example", Max: 5}, 64); len(got) != 0 {
		t.Errorf("planned %v of another domain", got)
	}
}

func TestPullGrantsNothingTwice(t *testing.T) {
	q := newQueue(t, 6)
	d := newDispatcher(q)
	granted := map[mail.QueueID]fsm.Token{}
	for _, holder := range []fsm.NodeName{"n1", "n2", "n3"} {
		grant, err := d.Pull(t.Context(), Request{Holder: holder, Domain: domain, Max: 64})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range grant.Messages {
			if granted[id] != 0 {
				t.Errorf("%s granted under %d and %d", id, granted[id], grant.Token)
			}
			granted[id] = grant.Token
		}
	}
	if len(granted) != 6 {
		t.Errorf("%d messages granted, want 6", len(granted))
	}
}

// The leader may end a lease only D and a margin after it saw the last renewal,
// by its own clock.
func TestLeaseClock(t *testing.T) {
	c := leaseClock{after: time.Minute}
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	lease := func(renewal fsm.Index) []fsm.Lease { return []fsm.Lease{{Token: 5, Renewal: renewal}} }
	for _, step := range []struct {
		second  int
		leases  []fsm.Lease
		expires bool
	}{
		{0, lease(5), false},
		{60, lease(5), false},
		{61, lease(9), false}, // renewed meanwhile: timed anew
		{121, lease(9), false},
		{122, lease(9), true},
		{123, nil, false},
		{124, lease(9), false}, // seen for the first time again
	} {
		got := c.overdue(step.leases, at(step.second))
		if (len(got) == 1) != step.expires {
			t.Errorf("at %d s: %v, want an expiry: %v", step.second, got, step.expires)
		}
		if len(got) == 1 && (got[0].Token != 5 || got[0].Renewal != 9) {
			t.Errorf("expires %v, want token 5 as of renewal 9", got[0])
		}
	}
}

func TestLeaderEndsLeasesAndAdvancesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 1)
		d := newDispatcher(q)
		if _, err := d.Pull(t.Context(), Request{Holder: "n1", Domain: domain, Max: 1}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		began := time.Now()
		q.fail = func(a fsm.Action) error {
			if e, ok := a.(fsm.ExpireLeases); ok && time.Since(began) < time.Minute+time.Second {
				t.Errorf("lease %d ended after %s", e.Token, time.Since(began))
			}
			return nil
		}
		d.Lead(ctx)
		if n := len(q.state.Leases()); n != 0 {
			t.Errorf("%d leases stand after two minutes", n)
		}
		if now := time.Duration(q.state.Now()) * time.Millisecond; now > 2*time.Minute || now < 110*time.Second {
			t.Errorf("log time went on by %s in two minutes", now)
		}
	})
}

// An entry whose outcome is unknown may yet be committed. Log time that was
// counted in it must not be counted again: waits would end too early.
func TestLogTimeNeverRunsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 0)
		d := newDispatcher(q)
		var pending []fsm.Action
		q.fail = func(a fsm.Action) error {
			pending = append(pending, a)
			return errors.New("outcome unknown")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		d.Lead(ctx)
		for _, a := range pending { // all of them are committed in the end
			q.commit(a)
		}
		if now := time.Duration(q.state.Now()) * time.Millisecond; now > 10*time.Minute {
			t.Errorf("log time went on by %s in ten minutes", now)
		}
		if len(pending) == 0 {
			t.Error("nothing was proposed")
		}
	})
}
