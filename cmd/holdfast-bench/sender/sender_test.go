package sender

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run sends count letters to sinks with the given faults, one set for each,
// and returns what the ledger and the sender say. It runs in a bubble.
func run(t *testing.T, count int, plans ...[]sink.Fault) (ledger.Report, Stats, []*sink.Server) {
	t.Helper()
	l := ledger.New()
	listeners := make(map[string]*pipes)
	var targets []string
	var sinks []*sink.Server
	var serving sync.WaitGroup
	for i, plan := range plans {
		faults := sink.NewFaults(uint64(i))
		faults.Set(plan...)
		s := sink.New(sink.Options{Arrival: l.Arrival, Faults: faults, Inspect: func(_ string, _ []string, content []byte) error {
			return letter.Verify(content)
		}})
		p := newPipes()
		name := string(rune('a' + i))
		listeners[name] = p
		targets, sinks = append(targets, name), append(sinks, s)
		serving.Go(func() { s.Serve(p) })
	}
	g := letter.New(letter.Options{Seed: 1, Domains: []string{"example.test", "example.org"}, Sizes: letter.ShapesOfMail, BigAt: -1})
	s, err := New(Options{
		Targets: targets, Letter: g.Letter, Count: count, Sessions: 4, PerConnection: 5, Record: l,
		Dial: func(ctx context.Context, a string) (net.Conn, error) { return listeners[a].dial(ctx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range sinks {
		s.Close()
	}
	serving.Wait()
	return l.Check(), s.Stats(), sinks
}

func TestEveryShapeArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report, stats, sinks := run(t, 2*len(letter.Shapes()), nil, nil, nil)
		if !report.OK() || report.Duplicates != 0 || report.Accepted == 0 || report.Delivered != report.Accepted || stats.Pairs != report.Accepted {
			t.Errorf("%v\n%+v\n%q", report, stats, report.Cases)
		}
		for i, s := range sinks {
			if s.Stats().Messages == 0 || s.Stats().Violations != 0 {
				t.Errorf("sink %d: %+v", i, s.Stats())
			}
		}
	})
}

// At each stage, each way to fail, one of two servers: everything gets through,
// nothing is lost, and a copy too many comes from a lost reply only.
func TestFaultAtEachStage(t *testing.T) {
	for _, stage := range sink.Stages() {
		for _, action := range []sink.Action{sink.Refuse, sink.Defer, sink.Hang, sink.Drop} {
			fault := sink.Fault{Stage: stage, Action: action, Rate: 0.5}
			if _, err := sink.ParseFault(fault.String()); err != nil {
				continue // there is no reply to give here
			}
			t.Run(fault.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					report, stats, _ := run(t, 30, []sink.Fault{fault}, nil)
					if !report.OK() || report.Delivered != report.Accepted || stats.GivenUp > 0 {
						t.Errorf("%v\n%+v\n%q", report, stats, report.Cases)
					}
					permanent := action == sink.Refuse && (stage == sink.Mail || stage == sink.Rcpt || stage == sink.Data || stage == sink.Dot)
					if permanent != (report.NotAccepted > 0) {
						t.Errorf("%d pairs not accepted", report.NotAccepted)
					}
					if (stage == sink.AfterDot) != (report.Duplicates > 0) {
						t.Errorf("%d duplicates", report.Duplicates)
					}
				})
			})
		}
	}
}

// When nobody takes anything, the run still ends, and what it gave up was not
// accepted.
func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := []sink.Fault{{Stage: sink.Banner, Action: sink.Defer, Rate: 1}}
		report, stats, _ := run(t, 5, down, down)
		if report.Accepted != 0 || stats.GivenUp == 0 || stats.Unreachable == 0 {
			t.Errorf("%v\n%+v", report, stats)
		}
		if stats.Elapsed < giveUpDefault || stats.Elapsed > 4*giveUpDefault {
			t.Errorf("took %v", stats.Elapsed)
		}
	})
}

// No reply is not a refusal: what arrived all the same breaks no promise.
func TestNoReplyIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report, stats, _ := run(t, 1, []sink.Fault{{Stage: sink.AfterDot, Action: sink.Drop, Rate: 1}})
		if !report.OK() || report.Accepted != 0 || report.UnansweredDelivered == 0 || stats.NoReply == 0 || stats.GivenUp == 0 {
			t.Errorf("%v, %d unanswered and delivered, %d refused and delivered\n%+v", report, report.UnansweredDelivered, report.Refused, stats)
		}
	})
}

// Each reply is waited for, and how long is told, also where none comes.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		longest := map[string]ledger.Wait{}
		faults := sink.NewFaults(1)
		server := sink.New(sink.Options{Faults: faults, Pace: 3 * time.Second, Arrival: func(ledger.Arrival) error {
			faults.Set(sink.Fault{Stage: sink.Rcpt, Action: sink.Hang, Rate: 1}) // of the letter after the first
			return nil
		}})
		p := newPipes()
		var serving sync.WaitGroup
		serving.Go(func() { server.Serve(p) })
		s, err := New(Options{
			Targets: []string{"a"}, Letter: letter.New(letter.Options{Seed: 1, Domains: []string{"example.test"}, Sizes: letter.Size4K}).Letter,
			Count: 2, Record: ledger.New(), CommandTime: 7 * time.Second, GiveUp: 5 * time.Second,
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return p.dial(ctx) },
			Waited: func(w ledger.Wait) {
				mu.Lock()
				defer mu.Unlock()
				if w.Span.To.Sub(w.Span.From) >= longest[w.For].Span.To.Sub(longest[w.For].Span.From) {
					longest[w.For] = w
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.Close()
		serving.Wait()
		for what, want := range map[string]time.Duration{
			"the connection": 0, "EHLO": 0, "MAIL": 0, "RCPT": 7 * time.Second, "DATA": 0, "the final dot": 3 * time.Second,
		} {
			w, ok := longest[what]
			if got := w.Span.To.Sub(w.Span.From); !ok || got != want || w.Target != "a" || w.End == "" {
				t.Errorf("%s: %v, want %v", what, w, want)
			}
		}
		if got := s.Stats().Wait; got.Max() != 7*time.Second || got.count != 8 {
			t.Errorf("%d waits, %v", got.count, got)
		}
	})
}

// A primary that has no such recipient, or wants no message to him, says so for good,
// and what it says is recorded.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ledger.New()
		messages := 0
		server := sink.New(sink.Options{
			Arrival: l.Arrival, Refuse: letter.IsRefusedAt, Refused: l.Refusal,
			Message: func(m sink.Message) error {
				messages++
				if len(m.Content) == 0 || len(m.Recipients) == 0 || m.Peer == "" {
					t.Errorf("a message %+v", m)
				}
				return nil
			},
		})
		p := newPipes()
		var serving sync.WaitGroup
		serving.Go(func() { server.Serve(p) })
		g := letter.New(letter.Options{Seed: 1, Domains: []string{"example.test", "example.org"}, Sizes: letter.Size4K, RefusedEvery: 2})
		s, err := New(Options{
			Targets: []string{"a"}, Letter: g.Letter, Count: 2 * len(letter.Refusals()), Record: l,
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return p.dial(ctx) },
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.Close()
		serving.Wait()
		report, stats := l.Check(), s.Stats()
		// Each second letter has one recipient who takes it; of the others, one letter
		// has one, one two.
		if !report.OK() || report.Accepted != len(letter.Refusals())+3 || report.NotAccepted != stats.Refused || messages != len(letter.Refusals())+2 {
			t.Errorf("%+v\n%+v\n%d messages", report, stats, messages)
		}
		if server.Stats().Violations > 0 {
			t.Errorf("%d violations", server.Stats().Violations)
		}
	})
}

func TestLatency(t *testing.T) {
	var l Latency
	for i := 1; i <= 1000; i++ {
		l.add(time.Duration(i) * time.Millisecond)
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 500 * time.Millisecond}, {0.99, 990 * time.Millisecond}, {1, time.Second}} {
		got := l.Quantile(c.q)
		if got < c.want || got > c.want*17/16 {
			t.Errorf("quantile %v is %v, want about %v", c.q, got, c.want)
		}
	}
	if (Latency{}).Quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func TestQueueID(t *testing.T) {
	for text, want := range map[string]string{"2.0.0 queued as 01ABC": "01ABC", "2.0.0 queued as 01ABC thanks": "01ABC", "ok": "", "queued as ": ""} {
		if got := queueID(text); got != want {
			t.Errorf("queueID(%q) = %q, want %q", text, got, want)
		}
	}
}
