package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

const (
	dialTime        = 10 * time.Second
	commandTimeMax  = 5 * time.Minute  // RFC 5321 section 4.5.3.2
	contentTime     = 10 * time.Minute // for writing a whole content
	replyTimeMax    = 10 * time.Minute // RFC 5321 section 4.5.3.2.6
	backoffMin      = 100 * time.Millisecond
	backoffMax      = 2 * time.Second
	giveUpDefault   = time.Hour // several times replyTimeMax
	perConnDefault  = 20
	sessionsDefault = 1
)

// A Recorder keeps what was intended and what came of it: a ledger.
type Recorder interface {
	Intent(ledger.Intent) error
	Outcome(ledger.Outcome) error
}

// Options describe a run.
type Options struct {
	// Targets are addresses to dial, all equal.
	Targets []string
	// Letter makes letter i.
	Letter func(i int) *letter.Letter
	// First is the number of the first letter; Count how many, 0 for as many
	// as the context allows.
	First, Count int
	// Admit, when not nil, is asked before the n'th letter is begun, counted
	// from 0. It may wait; false ends the session.
	Admit func(ctx context.Context, n int) bool
	// Sessions is the number of connections at a time.
	Sessions int
	// PerConnection is the number of letters given over one connection, after
	// which the session goes on to the next target.
	PerConnection int
	// Pause is waited between two letters of a session.
	Pause time.Duration
	// GiveUp is the time after which a letter that nobody takes is given up.
	GiveUp time.Duration
	// ReplyTime bounds the wait for the reply to the final dot, CommandTime that
	// for any other.
	ReplyTime, CommandTime time.Duration
	// Record is told everything. An error ends the run.
	Record Recorder
	// Waited, when not nil, is told of each wait for a reply when it is over. It must
	// be safe for concurrent use.
	Waited func(ledger.Wait)
	// Dial opens a connection; nil for TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// TLS, when not nil, is used wherever STARTTLS is offered.
	TLS *tls.Config
	// Hello is the name in EHLO.
	Hello string
	// Seed makes the jitter of the back-off.
	Seed   uint64
	Logger *slog.Logger
}

// A Sender is one run.
type Sender struct {
	o    Options
	next atomic.Int64

	mu    sync.Mutex
	stats Stats
}

// New checks the options and returns a run that has not begun.
func New(o Options) (*Sender, error) {
	if len(o.Targets) == 0 {
		return nil, errors.New("no targets")
	}
	if o.Letter == nil || o.Record == nil {
		return nil, errors.New("no letters, or nowhere to record them")
	}
	if o.Dial == nil {
		dialer := &net.Dialer{Timeout: dialTime}
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Hello == "" {
		o.Hello = "sender.test"
	}
	orDefault(&o.Sessions, sessionsDefault)
	orDefault(&o.PerConnection, perConnDefault)
	orDefault(&o.GiveUp, giveUpDefault)
	orDefault(&o.ReplyTime, replyTimeMax)
	orDefault(&o.CommandTime, commandTimeMax)
	return &Sender{o: o, stats: Stats{Accepted: make(map[string]int)}}, nil
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Run sends all letters, or until ctx ends. It returns an error only when the
// record failed: mail that was refused or given up is in Stats.
func (s *Sender) Run(ctx context.Context) error {
	begin := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sessions sync.WaitGroup
	for n := range s.o.Sessions {
		sessions.Go(func() {
			w := &worker{s: s, target: n % len(s.o.Targets), rand: rand.New(rand.NewPCG(s.o.Seed, uint64(n)))}
			defer w.hangUp()
			if err := w.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	sessions.Wait()
	s.count(func(t *Stats) { t.Elapsed = time.Since(begin) })
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Stats returns the counts so far.
func (s *Sender) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats.clone()
}

func (s *Sender) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// waited counts a wait.
func (s *Sender) waited(w ledger.Wait) {
	s.count(func(t *Stats) { t.Wait.add(w.Span.To.Sub(w.Span.From)) })
	if s.o.Waited != nil {
		s.o.Waited(w)
	}
}

// take returns the number of the next letter.
func (s *Sender) take(ctx context.Context) (int, bool) {
	n := int(s.next.Add(1) - 1)
	if s.o.Count > 0 && n >= s.o.Count {
		return 0, false
	}
	return s.o.First + n, s.o.Admit == nil || s.o.Admit(ctx, n)
}

// A worker is one session: one letter after the other, over one connection at
// a time.
type worker struct {
	s      *Sender
	rand   *rand.Rand
	target int
	conn   *conversation
	given  int // letters given over conn
}

func (w *worker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		i, ok := w.s.take(ctx)
		if !ok {
			return nil
		}
		if err := w.send(ctx, w.s.o.Letter(i)); err != nil {
			return err
		}
		if w.s.o.Pause > 0 {
			sleep(ctx, w.s.o.Pause)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// send tries a letter until every recipient has a final answer.
func (w *worker) send(ctx context.Context, l *letter.Letter) error {
	pending := slices.Clone(l.Recipients)
	deadline := time.Now().Add(w.s.o.GiveUp)
	attempt, failures := 0, 0
	for len(pending) > 0 {
		if ctx.Err() != nil || time.Now().After(deadline) {
			w.s.o.Logger.Warn("gave a letter up", "id", l.ID, "recipients", pending, "attempts", attempt)
			w.s.count(func(t *Stats) { t.GivenUp += len(pending) })
			return nil
		}
		attempt++
		left, err := w.attempt(ctx, l, attempt, pending)
		if errors.Is(err, errRecord) {
			return err
		}
		pending = left
		if len(pending) == 0 {
			return nil
		}
		w.s.o.Logger.Debug("attempt failed", "id", l.ID, "attempt", attempt, "target", w.address(), "cause", err)
		w.moveOn()
		if failures++; failures%len(w.s.o.Targets) == 0 {
			w.backOff(ctx, failures/len(w.s.o.Targets))
		}
	}
	return nil
}

// backOff waits after the round'th round in which no target took a letter.
func (w *worker) backOff(ctx context.Context, round int) {
	d := min(backoffMin<<min(round-1, 10), backoffMax)
	sleep(ctx, d/2+time.Duration(w.rand.Int64N(int64(d))))
}

func (w *worker) address() string { return w.s.o.Targets[w.target] }

func (w *worker) hangUp() {
	if w.conn != nil {
		w.conn.close()
		w.conn = nil
	}
}

// moveOn leaves a target for the next one.
func (w *worker) moveOn() {
	w.hangUp()
	w.target = (w.target + 1) % len(w.s.o.Targets)
}

// connect makes sure that there is a conversation in which MAIL may come.
func (w *worker) connect(ctx context.Context) error {
	if w.conn != nil && w.given >= w.s.o.PerConnection {
		w.conn.quit()
		w.moveOn()
	}
	if w.conn != nil {
		return nil
	}
	c, err := dial(ctx, &w.s.o, w.address(), w.s.waited)
	if err != nil {
		w.s.count(func(t *Stats) { t.Unreachable++ })
		return err
	}
	w.conn, w.given = c, 0
	return nil
}

// errRecord says that the ledger failed, which makes the run worthless.
var errRecord = errors.New("record")

// attempt makes one transaction and returns the recipients that need another.
func (w *worker) attempt(ctx context.Context, l *letter.Letter, attempt int, pending []string) (left []string, err error) {
	if err := w.connect(ctx); err != nil {
		return pending, err
	}
	w.given++
	a := &transaction{
		c: w.conn, o: &w.s.o, count: w.s.count,
		letter: l, number: attempt, target: w.address(), recipients: pending,
	}
	left, err = a.run(ctx)
	if err != nil || len(left) > 0 {
		w.hangUp()
	}
	return left, err
}

// record wraps an error of the ledger.
func record(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errRecord, err)
}
