package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A server is an SMTP server in memory that keeps to a script.
type server struct {
	// replies stand in place of the good ones, by stage: banner, EHLO, MAIL, RCPT,
	// DATA, dot, QUIT. An empty one closes the connection instead.
	replies map[string]string
	// offers are the lines of the reply to EHLO.
	offers []string
	// pause is waited before the reply to the final dot; hang waits for ever.
	pause time.Duration
	hang  bool

	mu          sync.Mutex
	connections int
	quits       int
	messages    map[string]int // by Message-ID
	octets      int64
	ahead       int // commands that came before the reply to the one before
}

var good = map[string]string{
	"banner": "220 here", "MAIL": "250 2.1.0 ok", "RCPT": "250 2.1.5 ok", "DATA": "354 go on", "dot": "250 2.0.0 queued as X", "QUIT": "221 2.0.0 bye",
}

// serve holds one conversation.
func (s *server) serve(t *testing.T, conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	reply := func(stage string) bool {
		text, ok := s.replies[stage]
		if !ok {
			text = good[stage]
			if stage == "EHLO" {
				text = strings.ReplaceAll("250-"+strings.Join(append([]string{"here"}, s.offers...), "\r\n250-"), "250-"+last(s.offers), "250 "+last(s.offers))
			}
		}
		if text == "" {
			return false
		}
		_, err := io.WriteString(conn, text+"\r\n")
		return err == nil
	}
	if !reply("banner") {
		return
	}
	recipient := false
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if in.Buffered() > 0 {
			s.mu.Lock()
			s.ahead++
			s.mu.Unlock()
		}
		switch verb {
		case "MAIL":
			recipient = false
			if !strings.Contains(line, "FROM:<sender@sender.example> SIZE=") {
				t.Errorf("the line %q", line)
			}
		case "RCPT":
			recipient = strings.Contains(line, "TO:<user@example.test>")
		case "DATA":
			if !recipient {
				t.Error("DATA without a recipient")
			}
		case "QUIT":
			s.mu.Lock()
			s.quits++
			s.mu.Unlock()
			reply("QUIT")
			return
		case "EHLO":
		default:
			t.Errorf("the command %q", line)
			return
		}
		if !reply(verb) {
			return
		}
		if verb != "DATA" || !strings.HasPrefix(s.reply("DATA"), "354") {
			continue
		}
		var id string
		octets := 0
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line == endMark {
				break
			}
			octets += len(line)
			if value, ok := strings.CutPrefix(line, "Message-ID: "); ok {
				id = value
			}
		}
		time.Sleep(s.pause)
		if s.hang {
			in.ReadString('\n') // until the other side has had enough
			return
		}
		if strings.HasPrefix(s.reply("dot"), "250") {
			s.mu.Lock()
			s.messages[id]++
			s.octets += int64(octets)
			s.mu.Unlock()
		}
		if !reply("dot") {
			return
		}
	}
}

func (s *server) reply(stage string) string {
	if text, ok := s.replies[stage]; ok {
		return text
	}
	return good[stage]
}

func last(words []string) string { return words[len(words)-1] }

func newServer() *server {
	return &server{
		offers: []string{"PIPELINING", "8BITMIME", "SIZE 100000000"}, messages: make(map[string]int),
		pause: time.Millisecond, // without it the first session could do everything before the others begin
	}
}

// give runs a load against servers, in a bubble.
func give(t *testing.T, ctx context.Context, o Options, servers ...*server) (Result, error) {
	t.Helper()
	byName := make(map[string]*server)
	for i, s := range servers {
		name := string(rune('a' + i))
		byName[name] = s
		o.Targets = append(o.Targets, name)
	}
	var serving sync.WaitGroup
	o.Dial = func(_ context.Context, address string) (net.Conn, error) {
		here, there := net.Pipe()
		s := byName[address]
		s.mu.Lock()
		s.connections++
		s.mu.Unlock()
		serving.Go(func() { s.serve(t, there) })
		return here, nil
	}
	o.Sender, o.Recipient, o.Run, o.Seed = "sender@sender.example", "user@example.test", "t", 1
	o.pool = testPool
	if o.Sizes == "" {
		o.Sizes = Size4K
	}
	r, err := Run(ctx, o)
	serving.Wait()
	return r, err
}

// TestRunCounts: what a run counts as accepted is what the servers took, each of
// them its share, one connection for each message and each ended properly.
func TestRunCounts(t *testing.T) {
	const many = 60
	for _, offers := range [][]string{{"PIPELINING", "SIZE"}, {"SIZE", "pipelining"}, {"SIZE 10", "NOPIPELINING", "XPIPE PIPELINING"}} {
		synctest.Test(t, func(t *testing.T) {
			servers := []*server{newServer(), newServer(), newServer()}
			for _, s := range servers {
				s.offers = offers
			}
			r, err := give(t, t.Context(), Options{Sessions: 6, Count: many, Sizes: Mix}, servers...)
			if err != nil || r.Accepted != many || r.Failures() != 0 || r.FirstFailure != "" {
				t.Errorf("%q: %v, %v", offers, r, err)
			}
			ids, octets, ahead := make(map[string]int), int64(0), 0
			for i, s := range servers {
				if s.connections != len(s.messages) || s.quits != s.connections || s.connections == 0 {
					t.Errorf("%q: server %d saw %d connections, %d QUITs, %d messages", offers, i, s.connections, s.quits, len(s.messages))
				}
				maps.Copy(ids, s.messages)
				octets += s.octets
				ahead += s.ahead
			}
			if len(ids) != many || octets != r.Octets {
				t.Errorf("%q: the servers took %d messages of %d octets, the run counts %d", offers, len(ids), octets, r.Octets)
			}
			// MAIL and RCPT have commands behind them where that is offered.
			want := 0
			if strings.EqualFold(offers[0], "PIPELINING") || strings.EqualFold(offers[1], "PIPELINING") {
				want = 2 * many
			}
			if ahead != want {
				t.Errorf("%q: %d commands came ahead of a reply, want %d", offers, ahead, want)
			}
		})
	}
}

// TestRunSpread: the sessions are spread evenly, and go on for the time given.
func TestRunSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []*server{newServer(), newServer(), newServer()}
		for _, s := range servers {
			s.pause = 100 * time.Millisecond
		}
		r, err := give(t, t.Context(), Options{Sessions: 6, Duration: 1050 * time.Millisecond}, servers...)
		// Each session begins one at 0, 100, ... 1000 ms; the last is finished.
		if err != nil || r.Accepted != 6*11 || r.Elapsed != 1100*time.Millisecond || math.Abs(r.PerSecond()-60) > 1e-6 {
			t.Errorf("%v in %v, %v", r, r.Elapsed, err)
		}
		for i, s := range servers {
			if len(s.messages) != 2*11 {
				t.Errorf("server %d took %d", i, len(s.messages))
			}
		}
		hundred := Quantiles{100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond}
		if r.Dot != hundred || r.Session != hundred {
			t.Errorf("dot %v, session %v", r.Dot, r.Session)
		}
	})
}

// One session can be spread as well.
func TestRunRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []*server{newServer(), newServer(), newServer()}
		servers[1].replies = map[string]string{"dot": "451 later"} // is left for the next one, too
		r, err := give(t, t.Context(), Options{Sessions: 1, Count: 14, PerConnection: 2, Rotate: true}, servers...)
		if err != nil || r.Accepted != 11 || r.Failed[451] != 3 {
			t.Errorf("%v, %v", r, err)
		}
		// 2, 1 failed, 2; and again; 2, 1 failed, 1.
		if len(servers[0].messages) != 6 || servers[1].connections != 3 || len(servers[2].messages) != 5 {
			t.Errorf("%d messages, %d connections, %d messages", len(servers[0].messages), servers[1].connections, len(servers[2].messages))
		}
	})
}

func TestRunPerConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		r, err := give(t, t.Context(), Options{Sessions: 2, Count: 40, PerConnection: 5}, s)
		if err != nil || r.Accepted != 40 || len(s.messages) != 40 || s.connections < 8 || s.connections > 10 {
			t.Errorf("%v, %v; %d messages over %d connections", r, err, len(s.messages), s.connections)
		}
	})
}

func TestRunBytesMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		r, err := give(t, t.Context(), Options{Sessions: 3, Count: 1000, BytesMax: 10*4*kib + 1}, s)
		if err != nil || r.Accepted != 10 || r.Octets != 10*4*kib || s.octets != r.Octets {
			t.Errorf("%v, %d octets, %v", r, r.Octets, err)
		}
	})
}

// TestRunRefused: at each stage, each kind of refusal and a closed connection are
// counted by their code and nothing of it is accepted; the message is not given
// again, and a server that refuses everything is not hammered.
func TestRunRefused(t *testing.T) {
	for _, stage := range []string{"banner", "EHLO", "MAIL", "RCPT", "DATA", "dot"} {
		for text, code := range map[string]int{
			"452 4.3.1 later": 452, "554 5.7.1 never": 554, "421-a\r\n421 closing": 421, "": 0, "what": 0, "25": 0, "251 other": 251,
		} {
			for _, pipelining := range []string{"PIPELINING", "HELP"} {
				synctest.Test(t, func(t *testing.T) {
					bad, well := newServer(), newServer()
					bad.replies = map[string]string{stage: text}
					bad.offers, bad.pause = []string{pipelining}, 0
					r, err := give(t, t.Context(), Options{Sessions: 4, Duration: 210 * time.Millisecond}, bad)
					// One at 0, 20, ... 200 ms.
					if err != nil || r.Accepted != 0 || r.Octets != 0 || len(r.Failed) != 1 || r.Failed[code] != 4*11 || r.Failures() != 4*11 {
						t.Errorf("%s at %s: %v, %v", text, stage, r, err)
					}
					if len(bad.messages) != 0 || bad.connections != 4*11 {
						t.Errorf("%q at %s: %d messages over %d connections", text, stage, len(bad.messages), bad.connections)
					}
					_, tail, _ := strings.Cut(text, "\r\n")
					if tail == "" {
						tail = text
					}
					if r.FirstFailure == "" || !strings.Contains(r.FirstFailure, tail) || !strings.Contains(r.String(), "44 FAILED") {
						t.Errorf("%q at %s: first failure %q; %v", text, stage, r.FirstFailure, r)
					}
					// Beside a server that takes everything, only its own are lost.
					r, err = give(t, t.Context(), Options{Sessions: 2, Count: 30}, bad, well)
					if err != nil || r.Accepted != len(well.messages) || r.Failures() == 0 || r.Accepted+r.Failures() != 30 {
						t.Errorf("%q at %s: %v, %v", text, stage, r, err)
					}
				})
			}
		}
	}
}

// A message whose 250 was read is accepted, whatever comes of QUIT.
func TestRunQuitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.replies = map[string]string{"QUIT": ""}
		if r, err := give(t, t.Context(), Options{Sessions: 2, Count: 10}, s); err != nil || r.Accepted != 10 || r.Failures() != 0 {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// TestRunHangs: a server that never answers costs its message, in bounded time.
func TestRunHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.hang = true
		r, err := give(t, t.Context(), Options{Sessions: 2, Duration: time.Second}, s)
		if err != nil || r.Accepted != 0 || r.Failed[0] != 2 || r.Elapsed < replyTimeout || r.Elapsed > replyTimeout+time.Second {
			t.Errorf("%v in %v, %v", r, r.Elapsed, err)
		}
	})
}

// TestRunInterrupted: the end of ctx ends a run at once, and what was under way
// is no failure of the server.
func TestRunInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung, well := newServer(), newServer()
		hung.hang, well.pause = true, 300*time.Millisecond
		told := errors.New("told to end")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(told) })
		r, err := give(t, ctx, Options{Sessions: 2, Duration: time.Minute}, hung, well)
		if !errors.Is(err, told) || r.Elapsed != time.Second || r.Accepted != 3 || r.Failures() != 0 {
			t.Errorf("%v in %v, %v", r, r.Elapsed, err)
		}
	})
}

// Nothing listens there.
func TestRunRefusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := Run(t.Context(), Options{
			Targets: []string{"x"}, Sessions: 2, Count: 10, Sizes: Size4K, pool: testPool,
			Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("connection refused") },
		})
		if err != nil || r.Failed[0] != 10 || r.FirstFailure != "connection refused" || r.PerSecond() != 0 {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// The sizes and octets of a session come from the seed alone, so that two servers
// that are compared get the same.
func TestRunRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken [2]*server
		for i := range taken {
			taken[i] = newServer()
			taken[i].pause = time.Duration(1+9*i) * time.Millisecond
			if r, err := give(t, t.Context(), Options{Sessions: 1, Count: 20, Sizes: Mix}, taken[i]); err != nil || r.Accepted != 20 {
				t.Fatalf("%v, %v", r, err)
			}
		}
		if taken[0].octets != taken[1].octets || !maps.Equal(taken[0].messages, taken[1].messages) {
			t.Errorf("%d octets, then %d", taken[0].octets, taken[1].octets)
		}
	})
}

func TestCheck(t *testing.T) {
	good := func() Options {
		return Options{Targets: []string{"a:1"}, Sessions: 1, Count: 1, Sizes: Mix, Run: "r1-A"}
	}
	if o := good(); o.Check() != nil {
		t.Errorf("%+v: %v", o, o.Check())
	}
	for i, spoil := range []func(*Options){
		func(o *Options) { o.Targets = nil },
		func(o *Options) { o.Sessions = 0 },
		func(o *Options) { o.Count = 0 },
		func(o *Options) { o.Sizes = "5k" },
		func(o *Options) { o.Sizes = "" },
		func(o *Options) { o.Run = "a b" },
		func(o *Options) { o.Run = "a\r\nX: b" },
		func(o *Options) { o.Run = strings.Repeat("r", runMax+1) },
	} {
		o := good()
		spoil(&o)
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("options %d: %+v were run", i, o)
		}
	}
}

func TestQuantiles(t *testing.T) {
	for _, c := range []struct{ n, p50, p99 int }{{1, 1, 1}, {2, 1, 2}, {3, 2, 3}, {100, 50, 99}, {101, 51, 100}, {1000, 500, 990}, {1001, 501, 991}} {
		all := make([]time.Duration, c.n)
		for i, at := range rand.New(rand.NewPCG(1, 0)).Perm(c.n) {
			all[at] = time.Duration(i + 1)
		}
		want := Quantiles{time.Duration(c.p50), time.Duration(c.p99), time.Duration(c.n)}
		if got := quantiles(all); got != want {
			t.Errorf("of %d: %d, want %d", c.n, got, want)
		}
	}
	if got := quantiles(nil); got != (Quantiles{}) {
		t.Errorf("of nothing: %v", got)
	}
	if text := fmt.Sprint(Quantiles{1234567, 2345678, 3456789}); text != "p50=1.23ms p99=2.35ms max=3.46ms" {
		t.Error(text)
	}
}
