package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/cluster/dispatch"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The lease protocol with its real halves: the leader's clock is cluster/dispatch's,
// the holders' are heldLeases, the queue is fsm's. fsm/leasemodel_test.go has the
// same rules with both halves written from the architecture; this holds the code to
// them.
//
// A bubble has one monotonic clock, which is the leader's. Holders have a Boot of
// their own: too fast or too slow by what two clocks may differ that are each one in
// a hundred wrong. A suspended host does nothing, and its Boot goes on.
type clockWorld struct {
	t      *testing.T
	plan   clockPlan
	random *rand.Rand
	ctx    context.Context
	began  time.Time
	runs   sync.WaitGroup

	mu      sync.Mutex
	state   *fsm.State
	index   fsm.Index
	leader  *dispatch.Dispatcher
	depose  context.CancelFunc
	holders []*clockHolder
	begun   map[tokenOf]bool          // named by a committed renewal
	renewed map[fsm.Token]clockMoment // the last committed renewal
	broken  []string
	story   []string
	dots    int
	paused  int // dots of holders whose lease had ended while they were suspended
	expired int
}

type tokenOf struct {
	id    mail.QueueID
	token fsm.Token
}

// A clockMoment is when a request was sent: by the bubble's clock.
type clockMoment time.Time

// A clockHolder is a host that pulls, renews and sends, one lease after the other.
type clockHolder struct {
	w     *clockWorld
	name  fsm.NodeName
	agent *Agent
	rate  float64 // of its clock against the leader's
	cut   time.Time
	held  *heldLease
	over  map[mail.QueueID]bool // reported: it touches them no more

	sleeping  sync.Mutex
	suspended time.Time     // until then
	asleep    time.Duration // all that it has been
}

// A clockPlan is what is drawn before a run.
type clockPlan struct {
	seed   uint64
	rates  []float64
	late   time.Duration // by how much the leader may be late to look at its clock
	trip   time.Duration // of a request to the log, at most
	events []clockEvent
	// What is broken on purpose.
	margin    time.Duration
	lease     time.Duration // that holders count
	monotonic bool          // Boot stands still in suspend
	deaf      bool          // holders take what they ask for as granted
}

type clockEvent struct {
	after time.Duration
	what  string
	who   int
	long  time.Duration
}

const (
	clockHosts  = 3
	clockMargin = time.Second
	// slowest is the rate of a clock one in a hundred too slow against one that is one
	// in a hundred too fast.
	slowest = 0.99 / 1.01
)

func drawPlan(t *rapid.T) clockPlan {
	p := clockPlan{margin: clockMargin, lease: LeaseDuration}
	p.seed = rapid.Uint64().Draw(t, "seed")
	for range clockHosts {
		p.rates = append(p.rates, rapid.SampledFrom([]float64{slowest, 1, 1 / slowest, slowest}).Draw(t, "rate"))
	}
	p.late = rapid.SampledFrom([]time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}).Draw(t, "late")
	p.trip = rapid.SampledFrom([]time.Duration{2 * time.Millisecond, 100 * time.Millisecond, 3 * time.Second}).Draw(t, "trip")
	for range rapid.IntRange(4, 16).Draw(t, "events") {
		p.events = append(p.events, clockEvent{
			after: rapid.SampledFrom([]time.Duration{100 * time.Millisecond, 3 * time.Second, 20 * time.Second, 50 * time.Second, 70 * time.Second}).Draw(t, "after"),
			what:  rapid.SampledFrom([]string{"cut", "cut", "suspend", "suspend", "leader", "hold"}).Draw(t, "what"),
			who:   rapid.IntRange(0, clockHosts-1).Draw(t, "who"),
			long:  rapid.SampledFrom([]time.Duration{2 * time.Second, 25 * time.Second, 40 * time.Second, 65 * time.Second, 3 * time.Minute}).Draw(t, "long"),
		})
	}
	return p
}

// runClocks runs a plan, and returns its world.
func runClocks(t *testing.T, p clockPlan) *clockWorld {
	w := &clockWorld{
		plan: p, random: rand.New(rand.NewPCG(p.seed, 1)), state: fsm.New(),
		begun: make(map[tokenOf]bool), renewed: make(map[fsm.Token]clockMoment),
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w.t, w.ctx, w.began = t, ctx, time.Now()
		w.run()
		cancel()
		w.runs.Wait()
	})
	return w
}

func (w *clockWorld) run() {
	w.apply(fsm.PutSettings{Settings: fsm.Settings{Voters: clockHosts}})
	w.apply(fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}}})
	for n := range 40 {
		var id mail.QueueID
		id[0], id[15] = 1, byte(n)
		path, _ := mail.ParseForwardPath("dora@example.test", false)
		w.apply(fsm.Accept{
			Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: testDomain}}},
			Body:     mail.NewBody(id[:]).Ref(id),
		})
	}
	w.elect()
	for n, rate := range w.plan.rates {
		h := &clockHolder{w: w, name: fsm.NodeName(fmt.Sprint("n", n+1)), rate: rate}
		agent, err := New(Config{
			Node: h.name, Hostname: string(h.name), Queue: clockQueue{h}, Router: noRoutes{},
			Boot: h.boot, BootID: uint64(n + 1), Random: func() float64 { return 0.5 },
			Log: slog.New(slog.DiscardHandler), LeaseDuration: w.plan.lease,
		})
		if err != nil {
			w.t.Fatal(err)
		}
		h.agent = agent
		w.holders = append(w.holders, h)
		w.runs.Go(h.work)
	}
	for _, e := range w.plan.events {
		time.Sleep(e.after)
		h := w.holders[e.who]
		w.mu.Lock()
		w.sayLocked("%s %s %s", e.what, h.name, e.long)
		until := time.Now().Add(e.long)
		switch e.what {
		case "cut":
			h.cut = until
		case "suspend":
			h.suspend(until)
		case "hold":
			w.applyLocked(fsm.Hold{ID: w.anyLocked()})
			w.applyLocked(fsm.Release{ID: w.anyLocked()})
		}
		w.mu.Unlock()
		if e.what == "leader" {
			w.elect()
		}
	}
	time.Sleep(3 * time.Minute)
}

type noRoutes struct{}

func (noRoutes) Route(context.Context, fsm.Domain) ([]route.Hop, error) {
	return nil, errors.New("nobody asks for routes here")
}

func (w *clockWorld) anyLocked() (id mail.QueueID) {
	id[0], id[15] = 1, byte(w.random.IntN(40))
	return id
}

func (w *clockWorld) sayLocked(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf("%9s ", time.Since(w.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (w *clockWorld) breakLocked(format string, args ...any) {
	w.sayLocked("BROKEN: "+format, args...)
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// elect has a new leader, which knows nothing of how long leases have stood.
func (w *clockWorld) elect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.depose != nil {
		w.depose()
	}
	ctx, depose := context.WithCancel(w.ctx)
	w.depose = depose
	d := dispatch.New(dispatch.Config{
		Queue: leaderSide{w}, Log: slog.New(slog.DiscardHandler),
		LeaseDuration: LeaseDuration, LeaseMargin: w.plan.margin, LeaseBatchMax: 8, TickEvery: 10 * time.Second,
	})
	w.leader = d
	w.runs.Go(func() { d.Lead(ctx) })
}

func (w *clockWorld) apply(a fsm.Action) (fsm.Index, fsm.Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.applyLocked(a)
}

func (w *clockWorld) applyLocked(a fsm.Action) (fsm.Index, fsm.Result) {
	w.index++
	r, _ := w.state.Apply(w.index, fsm.Command{Action: a})
	switch a := a.(type) {
	case fsm.GrantLeases:
		w.sayLocked("%d: granted to %s: %d", w.index, a.Holder, len(r.Messages))
	case fsm.ExpireLeases:
		w.sayLocked("%d: %+v: %s", w.index, a, r.Verdict)
		if r.Verdict == fsm.Done {
			w.expired++
		}
	}
	w.checkLocked()
	return w.index, r
}

// checkLocked holds each holder that may work on a message to having the lease of
// it: so no two may at once (I4).
func (w *clockWorld) checkLocked() {
	for _, h := range w.holders {
		if h.held == nil {
			continue
		}
		for _, id := range h.held.order {
			if h.over[id] || h.held.may(id) != nil {
				continue
			}
			if is, _ := w.state.Message(id); is.Parts[0].Lease != h.held.token {
				w.breakLocked("%s may work on %s under %d, and its lease is %d", h.name, id, h.held.token, is.Parts[0].Lease)
			}
		}
	}
}

// A leaderSide is the queue as the leader's dispatcher has it. The leader is late to
// look, as any process is.
type leaderSide struct{ w *clockWorld }

func (q leaderSide) View() *fsm.State {
	q.w.mu.Lock()
	late := time.Duration(q.w.random.Int64N(int64(q.w.plan.late)))
	q.w.mu.Unlock()
	time.Sleep(late)
	q.w.mu.Lock()
	defer q.w.mu.Unlock()
	return q.w.state.Snapshot()
}

func (q leaderSide) Propose(ctx context.Context, a fsm.Action) (fsm.Index, fsm.Result, error) {
	if err := ctx.Err(); err != nil {
		return 0, fsm.Result{}, err
	}
	i, r := q.w.apply(a)
	return i, r, nil
}

// suspend stops a host, if it is not.
func (h *clockHolder) suspend(until time.Time) {
	h.sleeping.Lock()
	defer h.sleeping.Unlock()
	if now := time.Now(); now.After(h.suspended) {
		h.suspended = until
		h.asleep += until.Sub(now)
	}
}

// boot is the holder's clock.
func (h *clockHolder) boot() time.Duration {
	h.sleeping.Lock()
	defer h.sleeping.Unlock()
	up := time.Since(h.w.began) + time.Hour
	if h.w.plan.monotonic {
		up -= h.asleep
		if left := time.Until(h.suspended); left > 0 {
			up += left // it has slept only so long of it
		}
	}
	return time.Duration(float64(up) * h.rate)
}

// awake waits until the host goes on.
func (h *clockHolder) awake() {
	for {
		h.sleeping.Lock()
		left := time.Until(h.suspended)
		h.sleeping.Unlock()
		if left <= 0 || !sleep(h.w.ctx, left) {
			return
		}
	}
}

// travel is a request's way to the log, or an answer's way back. It is false where
// it gets lost.
func (h *clockHolder) travel() bool {
	h.w.mu.Lock()
	trip := time.Duration(h.w.random.Int64N(int64(h.w.plan.trip)))
	lost := h.w.random.IntN(20) == 0
	h.w.mu.Unlock()
	sleep(h.w.ctx, trip)
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return !lost && time.Now().After(h.cut)
}

// work is a holder's life: it pulls, and delivers what it got.
func (h *clockHolder) work() {
	for h.w.ctx.Err() == nil {
		h.awake()
		sent := h.agent.c.Boot()
		l, err := h.agent.c.Queue.Pull(h.w.ctx, Wish{Domain: testDomain, Max: 8})
		if err != nil || len(l.Messages) == 0 {
			sleep(h.w.ctx, 5*time.Second)
			continue
		}
		h.deliver(newHeldLease(h.agent, l, sent))
	}
}

// deliver is what a worker does with a lease, with the primary left out.
func (h *clockHolder) deliver(l *heldLease) {
	w := h.w
	w.mu.Lock()
	h.held, h.over = l, make(map[mail.QueueID]bool)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(w.ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { l.keep(ctx) })
	defer func() {
		cancel()
		keeping.Wait()
		w.mu.Lock()
		h.held = nil
		w.mu.Unlock()
	}()
	for position, id := range l.order {
		l.advance(position)
		outcome := fsm.RecipientOutcome{Outcome: fsm.Deferred}
		h.awake()
		if l.may(id) == nil {
			sleep(ctx, h.takes()) // MAIL, RCPT, DATA, the body
			h.awake()
			if err := l.permit(ctx, id); err == nil {
				outcome = h.dot(l, id)
			} else if ctx.Err() != nil {
				return
			}
		}
		w.mu.Lock()
		h.over[id] = true
		w.mu.Unlock()
		h.report(l, id, outcome)
	}
}

// takes is how long something takes that is not ours to say.
func (h *clockHolder) takes() time.Duration {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return []time.Duration{10 * time.Millisecond, 500 * time.Millisecond, 8 * time.Second, 40 * time.Second}[h.w.random.IntN(4)]
}

// dot is sent as soon as the host is awake: it was permitted before.
func (h *clockHolder) dot(l *heldLease, id mail.QueueID) fsm.RecipientOutcome {
	w := h.w
	w.mu.Lock()
	permitted := time.Now()
	stopped := w.random.IntN(6) == 0
	w.mu.Unlock()
	if stopped { // in the worst moment
		h.suspend(permitted.Add(h.takes() + LeaseDuration))
	}
	h.awake()
	w.mu.Lock()
	w.dots++
	key := tokenOf{id, l.token}
	is, _ := w.state.Message(id)
	paused := time.Now().After(permitted)
	w.sayLocked("%s sends the dot of %s under %d, stopped before it: %v", h.name, id, l.token, paused)
	if !w.begun[key] {
		w.breakLocked("no committed renewal named %s under %d", id, l.token)
	}
	since := permitted.Sub(time.Time(w.renewed[l.token]))
	if limit := time.Duration(float64(w.plan.lease/2) / slowest); since >= limit {
		w.breakLocked("the dot of %s was permitted %s after the last committed renewal was sent", id, since)
	}
	if is.Parts[0].Lease != l.token {
		if paused {
			w.paused++
		} else {
			w.breakLocked("%s sends the dot of %s under %d, and its lease is %d", h.name, id, l.token, is.Parts[0].Lease)
		}
	}
	w.mu.Unlock()
	sleep(w.ctx, h.takes())
	w.mu.Lock()
	defer w.mu.Unlock()
	return fsm.RecipientOutcome{Outcome: []fsm.Outcome{fsm.Delivered, fsm.Deferred, fsm.Deferred, fsm.InDoubt}[w.random.IntN(4)], Tried: true}
}

// report says what became of a message, until somebody hears it or the lease is long
// over.
func (h *clockHolder) report(l *heldLease, id mail.QueueID, o fsm.RecipientOutcome) {
	for range 40 {
		err := h.agent.c.Queue.Report(h.w.ctx, l.token, []fsm.MessageOutcomes{{ID: id, Recipients: []fsm.RecipientOutcome{o}}})
		if err == nil || !sleep(h.w.ctx, 3*time.Second) {
			return
		}
	}
}

// A clockQueue is the way of one holder to the queue.
type clockQueue struct{ h *clockHolder }

func (q clockQueue) Work() []Work                     { return nil }
func (q clockQueue) WorkFor(mail.Domain) (Work, bool) { return Work{}, false }
func (q clockQueue) Changed() <-chan struct{}         { return nil }
func (q clockQueue) unheard(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (q clockQueue) Pull(ctx context.Context, wish Wish) (Lease, error) {
	q.h.awake()
	if !q.h.travel() {
		return Lease{}, errLost
	}
	q.h.w.mu.Lock()
	leader := q.h.w.leader
	q.h.w.mu.Unlock()
	g, err := leader.Pull(ctx, dispatch.Request{Holder: q.h.name, Domain: wish.Domain, Max: wish.Max})
	if err != nil {
		return Lease{}, err
	}
	if !q.h.travel() {
		return Lease{}, errLost
	}
	q.h.awake()
	l := Lease{Token: g.Token}
	for _, id := range g.Messages {
		l.Messages = append(l.Messages, Message{ID: id, Recipients: []int{0}})
	}
	return l, nil
}

func (q clockQueue) Renew(ctx context.Context, token fsm.Token, request fsm.RequestID, begun []mail.QueueID) ([]mail.QueueID, error) {
	w, sent := q.h.w, clockMoment(time.Now())
	q.h.awake()
	if w.plan.deaf {
		return nil, nil
	}
	if !q.h.travel() {
		return nil, q.unheard(ctx)
	}
	w.mu.Lock()
	_, r := w.applyLocked(fsm.RenewLeases{Holder: q.h.name, Token: token, Request: request, Begun: begun})
	if r.Verdict == fsm.Done {
		w.renewed[token] = sent
		for _, id := range begun {
			if !slices.Contains(r.Messages, id) {
				w.begun[tokenOf{id, token}] = true
			}
		}
	}
	w.mu.Unlock()
	if !q.h.travel() {
		return nil, q.unheard(ctx)
	}
	q.h.awake()
	if r.Verdict != fsm.Done {
		return r.Messages, ErrLeaseEnded
	}
	return r.Messages, nil
}

func (q clockQueue) Report(_ context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error {
	q.h.awake()
	if !q.h.travel() {
		return errLost
	}
	q.h.w.apply(fsm.RecordOutcomes{Holder: q.h.name, Token: token, Messages: outcomes})
	if !q.h.travel() {
		return errLost
	}
	return nil
}

func (q clockQueue) ReportNextHop(context.Context, mail.Domain, Sight, string) error { return nil }

func (q clockQueue) OpenBody(context.Context, mail.BodyRef) (io.ReadSeekCloser, error) {
	return nil, errLost
}

// TestLeaseClocks has the leader's clock and the holders' leases under drift, suspend,
// lost requests and new leaders.
func TestLeaseClocks(t *testing.T) {
	var dots, paused, expired int
	rapid.Check(t, func(rt *rapid.T) {
		w := runClocks(t, drawPlan(rt))
		dots, paused, expired = dots+w.dots, paused+w.paused, expired+w.expired
		if len(w.broken) > 0 {
			rt.Fatalf("%s", strings.Join(w.story, "\n"))
		}
	})
	t.Logf("%d dots, %d of them by holders that were stopped before and whose lease had ended, %d leases expired", dots, paused, expired)
	if dots == 0 || paused == 0 || expired == 0 {
		t.Error("the runs have not what the rules are about")
	}
}

// TestLeaseClocksControls breaks what goes into the protocol through constructors.
func TestLeaseClocksControls(t *testing.T) {
	for name, wrong := range map[string]func(*clockPlan){
		"a leader without a margin":                       func(p *clockPlan) { p.margin = 0 },
		"a holder that counts D of a slow clock":          func(p *clockPlan) { p.lease = LeaseDuration * driftDivisor / (driftDivisor - 1) },
		"a clock that stands still while the host sleeps": func(p *clockPlan) { p.monotonic = true },
		"a renewal that counts before it is committed":    func(p *clockPlan) { p.deaf = true },
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 7))
			for n := range 2000 {
				p := rapid.Custom(drawPlan).Example(int(random.Int32()))
				wrong(&p)
				if w := runClocks(t, p); len(w.broken) > 0 {
					t.Logf("run %d: %s", n, w.broken[0])
					return
				}
			}
			t.Error("no run misses it")
		})
	}
}
