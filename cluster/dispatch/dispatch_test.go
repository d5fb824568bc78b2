package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const domain mail.Domain = "example.org"

// A queue is a replicated queue of one replica: Propose applies at once, unless
// it is told to fail.
type queue struct {
	mu    sync.Mutex
	state *fsm.State
	index fsm.Index
	// fail, if not nil, decides what becomes of an action: applied or not, and
	// what the proposer is told.
	fail       func(fsm.Action) (applied bool, err error)
	commitTime time.Duration
}

func newQueue(t testing.TB) *queue {
	t.Helper()
	q := &queue{state: fsm.New()}
	q.apply(t, fsm.PutDomain{Domain: fsm.Domain{Name: domain, Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}})
	return q
}

func (q *queue) apply(t testing.TB, a fsm.Action) fsm.Result {
	t.Helper()
	_, r, err := q.Propose(t.Context(), a)
	if err != nil || r.Verdict != fsm.Done {
		t.Fatalf("%T: %+v %v", a, r, err)
	}
	return r
}

func (q *queue) View() *fsm.State {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state.Snapshot()
}

func (q *queue) Propose(_ context.Context, a fsm.Action) (fsm.Index, fsm.Result, error) {
	time.Sleep(q.commitTime)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fail != nil {
		if applied, err := q.fail(a); err != nil {
			if applied {
				q.index++
				q.state.Apply(q.index, fsm.Command{Node: "n1", Action: a})
			}
			return 0, fsm.Result{}, err
		}
	}
	q.index++
	r, _ := q.state.Apply(q.index, fsm.Command{Node: "n1", Action: a})
	return q.index, r, nil
}

// accept puts a message into the queue. Ids descend with n, so that the order of
// the queue is seen not to be that of the ids.
func (q *queue) accept(t testing.TB, n int) mail.QueueID {
	t.Helper()
	body := new(mail.Body)
	fmt.Fprintf(body, "body %d\r\n", n)
	id := mail.MintQueueID(uint64(1_000_000-n), [10]byte{byte(n)})
	path, err := mail.ParseForwardPath(fmt.Sprintf("dora%d@example.org", n), false)
	if err != nil {
		t.Fatal(err)
	}
	q.apply(t, fsm.Accept{Body: body.Ref(id), Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: domain}}}})
	return id
}

// Nodes that ask at the same time, while commits take their time, get different
// messages, and all there are: two plans made from one view would name the same.
func TestPullsDoNotShareMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		for n := range 40 {
			q.accept(t, n)
		}
		q.commitTime = 10 * time.Millisecond
		d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 7, TickEvery: time.Second})
		var mu sync.Mutex
		given := map[mail.QueueID]int{}
		var pulls sync.WaitGroup
		for n := range 8 {
			pulls.Go(func() {
				g, err := d.Pull(t.Context(), Request{Holder: fsm.NodeName(fmt.Sprint("n", n)), Domain: domain, Max: 100})
				if err != nil || len(g.Messages) > 7 {
					t.Errorf("%d messages, %v", len(g.Messages), err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, id := range g.Messages {
					given[id]++
				}
			})
		}
		pulls.Wait()
		if len(given) != 40 {
			t.Errorf("%d of 40 messages were given", len(given))
		}
		for id, n := range given {
			if n != 1 {
				t.Errorf("%s was given %d times", id, n)
			}
		}
	})
}

// TestRegressionTwoFirstMessages: a node that found a next hop to be back was given its
// first message before the state said so; when the state did, a second node was given
// another one, also where the domain has one connection in all. The same happened where
// one node could not reach what another was busy with, and where the leader changed.
func TestRegressionTwoFirstMessages(t *testing.T) {
	for name, between := range map[string]func(t *testing.T, q *queue, d *Dispatcher) *Dispatcher{
		"found to be back": func(t *testing.T, q *queue, d *Dispatcher) *Dispatcher {
			q.apply(t, fsm.ReportNextHop{Node: "n1", Domain: domain, Up: true})
			return d
		},
		"out of one node's reach": func(t *testing.T, q *queue, d *Dispatcher) *Dispatcher {
			q.apply(t, fsm.ReportNextHop{Node: "n1", Domain: domain, Up: true})
			q.apply(t, fsm.Tick{Elapsed: 5000})
			q.apply(t, fsm.ReportNextHop{Node: "n2", Domain: domain, Detail: "no answer"})
			q.apply(t, fsm.Tick{Elapsed: 5000})
			q.apply(t, fsm.ReportNextHop{Node: "n1", Domain: domain, Up: true})
			return d
		},
		"another leader": func(t *testing.T, q *queue, d *Dispatcher) *Dispatcher { return New(d.config) },
		"a long lease": func(t *testing.T, q *queue, d *Dispatcher) *Dispatcher {
			time.Sleep(2 * d.config.LeaseDuration)
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t)
				for n := range 9 {
					q.accept(t, n)
				}
				for _, n := range []fsm.NodeName{"n1", "n2"} {
					q.apply(t, fsm.ReportNextHop{Node: n, Domain: domain, Detail: "refused"})
				}
				q.apply(t, fsm.Tick{Elapsed: 60_000})
				d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 7, TickEvery: time.Second})
				pull := func(holder fsm.NodeName) int {
					g, err := d.Pull(t.Context(), Request{Holder: holder, Domain: domain, Max: 7, Connections: 1})
					if err != nil {
						t.Fatal(err)
					}
					return len(g.Messages)
				}
				if n := pull("n1"); n != 1 {
					t.Fatalf("the first message is %d", n)
				}
				d = between(t, q, d)
				if n := pull("n2"); n != 0 {
					t.Errorf("%d messages more, while the first is on its way", n)
				}
			})
		})
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

// The lease clock against a naive one: it never ends a lease before it has stood
// unrenewed for longer than D plus the margin since this leader first saw it
// so, and always names the renewal that it saw.
func TestLeaseClockNeverExpiresEarly(t *testing.T) {
	const after = 61 * time.Second
	rapid.Check(t, func(t *rapid.T) {
		clock := leaseClock{after: after}
		start := time.Unix(1_000_000, 0)
		now := start
		type standing struct {
			renewal fsm.Index
			seen    time.Time
		}
		leases := map[fsm.Token]*standing{}
		next := fsm.Index(1)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40_000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				leases[fsm.Token(next)] = &standing{renewal: next, seen: time.Time{}}
				next++
			case 1:
				for _, l := range leases {
					if rapid.Bool().Draw(t, "renewed") {
						l.renewal, l.seen = next, time.Time{}
						next++
					}
				}
			case 2:
				for token := range leases {
					if rapid.IntRange(0, 3).Draw(t, "ended") == 0 {
						delete(leases, token)
					}
				}
			}
			var view []fsm.Lease
			for token, l := range leases {
				if l.seen.IsZero() {
					l.seen = now
				}
				view = append(view, fsm.Lease{Token: token, Renewal: l.renewal})
			}
			due := map[fsm.Token]bool{}
			for _, e := range clock.overdue(view, now) {
				l := leases[e.Token]
				if l == nil || l.renewal != e.Renewal {
					t.Fatalf("ends lease %d of renewal %d, which does not stand", e.Token, e.Renewal)
				}
				if now.Sub(l.seen) <= after {
					t.Fatalf("ends lease %d after %s", e.Token, now.Sub(l.seen))
				}
				due[e.Token] = true
			}
			for token, l := range leases {
				if now.Sub(l.seen) > after && !due[token] {
					t.Fatalf("lease %d has stood for %s and is not ended", token, now.Sub(l.seen))
				}
			}
			if len(clock.seen) != len(leases) {
				t.Fatalf("the clock remembers %d leases, and %d stand", len(clock.seen), len(leases))
			}
		}
	})
}

// A next hop that has come back gets one message first, whoever asks; then as many
// connections as what the holders see allows, each with as many messages as it wants.
// When it comes back another time, or another node leads, it begins anew.
func TestPullsFollowTheRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		for n := range 200 {
			q.accept(t, n)
		}
		d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 8, TickEvery: time.Second})
		pull := func(holder fsm.NodeName, connections int, seen Feedback) Grant {
			t.Helper()
			g, err := d.Pull(t.Context(), Request{Holder: holder, Domain: domain, Max: 8, Connections: connections, Seen: seen})
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		canary := func() Grant {
			t.Helper()
			g := pull("n1", 1, Feedback{})
			if len(g.Messages) != 1 || g.Connections != 1 {
				t.Errorf("first: %d messages, %d connections", len(g.Messages), g.Connections)
			}
			if g := pull("n2", 1, Feedback{}); len(g.Messages) != 0 || g.Connections != 0 {
				t.Errorf("second: %d messages, %d connections", len(g.Messages), g.Connections)
			}
			return g
		}
		first := canary()
		if g := pull("n1", 1, Feedback{Token: first.Token, Answered: 1}); len(g.Messages) != 8 || g.Connections != 2 {
			t.Errorf("behind the first: %d messages, %d connections", len(g.Messages), g.Connections)
		}
		if g := pull("n2", 1, Feedback{}); len(g.Messages) != 8 {
			t.Errorf("the other node: %d messages", len(g.Messages))
		}
		if g := pull("n3", 1, Feedback{}); len(g.Messages) != 0 {
			t.Errorf("a third connection: %d messages", len(g.Messages))
		}
		// n1 has closed its connections: there is room.
		if _, err := d.Pull(t.Context(), Request{Holder: "n1", Domain: domain, Connections: 0}); err != nil {
			t.Fatal(err)
		}
		if g := pull("n3", 1, Feedback{}); len(g.Messages) != 8 {
			t.Errorf("in the place of one that was closed: %d messages", len(g.Messages))
		}

		// Away for one node, it is not away.
		q.apply(t, fsm.ReportNextHop{Node: "n1", Domain: domain})
		d.lookForDown(q.View())
		q.apply(t, fsm.ReportNextHop{Node: "n2", Domain: domain, Up: true})
		if g := pull("n3", 1, Feedback{}); len(g.Messages) != 8 {
			t.Errorf("one node does not reach it, and another gets %d messages", len(g.Messages))
		}

		// Another leader goes on with what is under way, a message each at first.
		before := len(q.View().Leases())
		d = New(d.config)
		if g := pull("n1", 1, Feedback{}); len(g.Messages) != 1 || g.Connections != before-2*2+1 {
			t.Errorf("from a new leader, with %d leases: %d messages, %d connections", before, len(g.Messages), g.Connections)
		}

		closeAll := func() {
			for _, n := range []fsm.NodeName{"n1", "n2", "n3"} {
				if _, err := d.Pull(t.Context(), Request{Holder: n, Domain: domain, Connections: 0}); err != nil {
					t.Fatal(err)
				}
			}
		}
		q.apply(t, fsm.ReportNextHop{Node: "n1", Domain: domain})
		q.apply(t, fsm.ReportNextHop{Node: "n2", Domain: domain})
		d.lookForDown(q.View())
		closeAll()
		q.apply(t, fsm.ReportNextHop{Node: "n2", Domain: domain, Up: true})
		canary()
		for _, l := range q.View().Leases() {
			q.apply(t, fsm.ExpireLeases{Token: l.Token, Renewal: l.Renewal})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d.Lead(ctx)
		canary()

		// Nothing is due: who asked does not stand in the way of the next.
		for m := range q.View().Messages(mail.QueueID{}) {
			if len(q.View().Leases()) == 0 || m.Parts[0].Lease == 0 {
				q.apply(t, fsm.Hold{ID: m.ID})
			}
		}
		d = New(d.config)
		if g := pull("n1", 1, Feedback{}); len(g.Messages) != 0 {
			t.Errorf("%d messages where nothing is due", len(g.Messages))
		}
		q.accept(t, 201)
		if g := pull("n2", 1, Feedback{}); len(g.Messages) != 1 {
			t.Errorf("%d messages for the next to ask", len(g.Messages))
		}
	})
}

// A leader ends the lease of a holder that is gone, after D plus the margin by
// its own clock, and not before; and starts anew in each leadership.
func TestLeadExpiresOnlyAfterItsOwnWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		id := q.accept(t, 1)
		d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 8, TickEvery: 5 * time.Second})
		if g, err := d.Pull(t.Context(), Request{Holder: "n2", Domain: domain, Max: 1}); err != nil || len(g.Messages) != 1 {
			t.Fatal(g, err)
		}
		leased := func() bool { m, _ := q.View().Message(id); return m.Parts[0].Lease != 0 }
		lead := func(length time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), length)
			defer cancel()
			d.Lead(ctx)
		}
		lead(58 * time.Second)
		lead(58 * time.Second)
		if !leased() {
			t.Fatal("the lease was ended by leaders that had each waited too short a time")
		}
		m, _ := q.View().Message(id)
		q.apply(t, fsm.RenewLeases{Holder: "n2", Token: m.Parts[0].Lease, Begun: []mail.QueueID{id}})
		lead(61 * time.Second)
		if !leased() {
			t.Fatal("the lease was ended within D plus the margin")
		}
		lead(66 * time.Second)
		if leased() {
			t.Fatal("the lease was never ended")
		}
		if got := q.View().Totals().DoubtsExpired; got != 1 {
			t.Errorf("%d doubts are counted, want 1", got)
		}
	})
}

// Log time never runs ahead of the time that passed, whatever becomes of the
// ticks: an entry whose outcome is not known may have been committed.
func TestLogTimeNeverRunsAhead(t *testing.T) {
	errUnknown := errors.New("outcome unknown")
	for name, fail := range map[string]func(n int) (bool, error){
		"all go well":       func(int) (bool, error) { return false, nil },
		"each second lost":  func(n int) (bool, error) { return false, map[bool]error{true: ErrNotLeading}[n%2 == 0] },
		"unknown, applied":  func(n int) (bool, error) { return true, map[bool]error{true: errUnknown}[n%2 == 0] },
		"all unknown":       func(int) (bool, error) { return true, errUnknown },
		"unknown, and lost": func(n int) (bool, error) { return n%3 == 0, errUnknown },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t)
				n := 0
				q.fail = func(a fsm.Action) (bool, error) {
					if _, ok := a.(fsm.Tick); !ok {
						return false, nil
					}
					n++
					return fail(n)
				}
				began := time.Now()
				d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 8, TickEvery: 5 * time.Second})
				for range 5 { // leaderships, with pauses in between
					ctx, cancel := context.WithTimeout(t.Context(), 93*time.Second)
					d.Lead(ctx)
					cancel()
					passed, logged := time.Since(began), time.Duration(q.View().Now())*time.Millisecond
					if logged > passed {
						t.Fatalf("log time is %s after %s", logged, passed)
					}
					time.Sleep(7 * time.Second)
				}
				if name == "all go well" && q.View().Now() < 5*80_000 {
					t.Errorf("log time is only %d ms", q.View().Now())
				}
			})
		})
	}
}

// TestRegressionNothingIsKeptForDomainsThatAreGone: a leader may lead for years, and domains come
// and go.
//
// It holds this defect: a leader kept what it knew of each domain that had ever been
// there.
func TestRegressionNothingIsKeptForDomainsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		d := New(Config{Queue: q, LeaseDuration: time.Minute, LeaseBatchMax: 8, TickEvery: time.Minute, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		go d.Lead(ctx)
		synctest.Wait()
		const other mail.Domain = "other.test"
		q.apply(t, fsm.PutDomain{Domain: fsm.Domain{Name: other, MX: true}})
		for _, n := range []mail.Domain{domain, other} {
			if _, err := d.Pull(ctx, Request{Holder: "n1", Domain: n, Max: 1, Connections: 1}); err != nil {
				t.Fatal(err)
			}
		}
		q.apply(t, fsm.RemoveDomain{Name: other})
		time.Sleep(3 * time.Minute)
		cancel()
		synctest.Wait()
		if _, kept := d.ramps[other]; kept || len(d.ramps) != 1 {
			t.Errorf("ramps %v", d.ramps)
		}
	})
}
