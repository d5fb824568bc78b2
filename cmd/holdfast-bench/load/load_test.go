package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A server is as much SMTP as the load needs, on one end of a pipe.
type server struct {
	pipelining bool
	// dot replies to the message-th final dot; "" closes without a reply.
	dot func(message int) string

	mu          sync.Mutex
	connections map[string]int // by address
	dialogs     [][]string     // the commands of each connection
	bodies      []string
}

func (s *server) dial(_ context.Context, address string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connections == nil {
		s.connections = make(map[string]int)
	}
	s.connections[address]++
	here, there := net.Pipe()
	go s.serve(there)
	return here, nil
}

func (s *server) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	// Replies are written beside reading: a pipe has no buffer.
	replies := make(chan string, 16)
	defer close(replies)
	go func() {
		for reply := range replies {
			_, _ = io.WriteString(conn, reply+"\r\n")
		}
	}()
	var dialog []string
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dialogs = append(s.dialogs, dialog)
	}()
	replies <- "220 here"
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		dialog = append(dialog, line)
		switch verb, _, _ := strings.Cut(line, " "); verb {
		case "EHLO":
			if s.pipelining {
				replies <- "250-here\r\n250-SIZE 1000\r\n250 PIPELINING"
			} else {
				replies <- "250-here\r\n250 SIZE 1000"
			}
		case "MAIL", "RCPT":
			replies <- "250 yes"
		case "DATA":
			replies <- "354 go on"
			var body strings.Builder
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				body.WriteString(line)
			}
			s.mu.Lock()
			s.bodies = append(s.bodies, body.String())
			n := len(s.bodies)
			s.mu.Unlock()
			reply := s.dot(n)
			if reply == "" {
				return
			}
			replies <- reply
		case "QUIT":
			replies <- "221 bye"
			_, _ = in.ReadByte() // the client closes
			return
		default:
			replies <- "500 what?"
		}
	}
}

func options(s *server) Options {
	return Options{
		Targets: []string{"a:25", "b:25", "c:25"}, Sessions: 4, Sizes: Size4K, Count: 40,
		Recipient: "user@example.test", Sender: "sender@sender.example", Run: "t", Seed: 1, Dial: s.dial,
	}
}

func TestOneMessagePerConnection(t *testing.T) {
	for _, pipelining := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			// The pause gives every session its turn.
			s := &server{pipelining: pipelining, dot: func(int) string { time.Sleep(time.Second); return "250 taken" }}
			r, err := Run(t.Context(), options(s))
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if r.Accepted != 40 || r.Octets != 40*4096 || r.Failures() != 0 {
				t.Errorf("%v", r)
			}
			for _, body := range s.bodies {
				if len(body) != 4096 {
					t.Errorf("a body of %d octets", len(body))
				}
			}
			want := []string{"EHLO load.sender.example", "MAIL FROM:<sender@sender.example> SIZE=4096", "RCPT TO:<user@example.test>", "DATA", "QUIT"}
			for _, dialog := range s.dialogs {
				if !slices.Equal(dialog, want) {
					t.Errorf("dialog %q", dialog)
				}
			}
			// Session i talks to target i mod 3: sessions 0 and 3 to the first.
			if s.connections["a:25"] != 20 || s.connections["b:25"] != 10 || s.connections["c:25"] != 10 {
				t.Errorf("connections %v", s.connections)
			}
		})
	}
}

func TestTargetsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{dot: func(int) string { time.Sleep(time.Second); return "250 taken" }}
		o := options(s)
		o.Sessions, o.Count, o.Duration = 6, 0, 9500*time.Millisecond
		r, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		// A second each: ten, the last of which begins within the time and counts.
		if r.Accepted != 60 || r.Elapsed != 10*time.Second || r.PerSecond() != 6 {
			t.Errorf("%v in %v", r, r.Elapsed)
		}
		if r.Dot.P50 != time.Second || r.Dot.P99 != time.Second || r.Session.P50 != time.Second {
			t.Errorf("dot %v, session %v", r.Dot, r.Session)
		}
		for _, target := range o.Targets {
			if s.connections[target] != 20 {
				t.Errorf("connections %v", s.connections)
			}
		}
	})
}

// What is not accepted is counted by its reply, and never as accepted.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{pipelining: true, dot: func(n int) string {
			return []string{"250 taken", "451 later", "550 never", ""}[n%4]
		}}
		o := options(s)
		r, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if r.Accepted != 10 || r.Octets != 10*4096 || r.Failures() != 30 || r.Failed[451] != 10 || r.Failed[550] != 10 || r.Failed[0] != 10 {
			t.Errorf("%v", r)
		}
		if !strings.Contains(r.String(), "30 FAILED") || r.FirstFailure == "" {
			t.Errorf("%q", r.String())
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{pipelining: true, dot: func(int) string { return "250 taken" }}
		o := options(s)
		o.Count, o.BytesMax, o.Duration = 0, 10*4096+5, time.Hour
		r, err := Run(t.Context(), o)
		if err != nil || r.Accepted != 10 || len(s.bodies) != 10 {
			t.Errorf("octets: %v, %v", r, err)
		}
		o.BytesMax, o.PerConnection, o.Count, o.Sessions = 0, 5, 20, 1
		synctest.Wait()
		before := len(s.dialogs)
		if r, err = Run(t.Context(), o); err != nil || r.Accepted != 20 {
			t.Errorf("count: %v, %v", r, err)
		}
		synctest.Wait()
		if got := len(s.dialogs) - before; got != 4 {
			t.Errorf("%d connections for 20 messages, 5 each", got)
		}
	})
	for _, o := range []Options{{}, {Targets: []string{"a"}, Sessions: 1}, {Targets: []string{"a"}, Count: 1}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v runs", o)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var all []time.Duration
	for i := 1000; i > 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	q := quantiles(all)
	if q.P50 != 501*time.Millisecond || q.P99 != 991*time.Millisecond || q.Max != time.Second {
		t.Errorf("%+v", q)
	}
	if q := quantiles([]time.Duration{7}); q != (Quantiles{7, 7, 7}) {
		t.Errorf("%+v", q)
	}
	if q := quantiles(nil); q != (Quantiles{}) {
		t.Errorf("%+v", q)
	}
	if got := fmt.Sprint(q); !strings.Contains(got, "p99=991ms") {
		t.Error(got)
	}
}
