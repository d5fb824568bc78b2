package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

// Bounds of one conversation.
const (
	dialTimeout    = 10 * time.Second
	replyTimeout   = 60 * time.Second
	contentTimeout = 3 * time.Minute // for the content to be taken
	linesMax       = 64              // of one reply
)

// A session gives one message after the other to one server, or to all in turn.
type session struct {
	run     *run
	target  int // the index of the next connection's
	rand    *rand.Rand
	content content

	conn   net.Conn
	unhook func() bool // ctx no longer closes conn
	in     *bufio.Reader
	out    []byte
	pipes  bool // the server offers PIPELINING
	given  int  // messages over conn
	opened time.Time

	dots, whole  []time.Duration
	octets       int64
	failed       map[int]int
	firstFailure string
}

// A refusal is a reply that was not hoped for.
type refusal struct {
	code int
	text string
}

func (r *refusal) Error() string { return r.text }

// work sends until the run is over.
func (s *session) work(ctx context.Context) {
	s.in = bufio.NewReaderSize(nil, 4<<10)
	defer s.hangUp()
	for {
		size := s.run.o.Sizes.draw(s.rand)
		n, ok := s.run.take(size)
		if !ok || ctx.Err() != nil {
			return
		}
		if err := s.message(ctx, n, size); err != nil {
			if ctx.Err() != nil {
				return // the connection was closed for that
			}
			s.fail(ctx, err)
		}
	}
}

func (s *session) fail(ctx context.Context, err error) {
	code := 0
	if r, ok := err.(*refusal); ok {
		code = r.code
	}
	s.failed[code]++
	if s.firstFailure == "" {
		s.firstFailure = err.Error()
	}
	s.hangUp()
	select {
	case <-time.After(failurePause):
	case <-ctx.Done():
	}
}

func (s *session) hangUp() {
	if s.conn != nil {
		s.unhook()
		_ = s.conn.Close()
		s.conn = nil
	}
}

// message gives one message away.
func (s *session) message(ctx context.Context, n, size int) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	o := &s.run.o
	pieces := s.content.next(n, size)
	s.out = fmt.Appendf(s.out[:0], "MAIL FROM:<%s> SIZE=%d\r\n", o.Sender, size)
	if !s.pipes {
		if err := s.command(250); err != nil {
			return err
		}
		s.out = s.out[:0]
	}
	s.out = fmt.Appendf(s.out, "RCPT TO:<%s>\r\n", o.Recipient)
	if !s.pipes {
		if err := s.command(250); err != nil {
			return err
		}
		s.out = s.out[:0]
	}
	s.out = append(s.out, "DATA\r\n"...)
	want := []int{354}
	if s.pipes {
		want = []int{250, 250, 354}
	}
	if err := s.command(want...); err != nil {
		return err
	}
	pieces = append(pieces, []byte(endMark))
	_ = s.conn.SetDeadline(time.Now().Add(contentTimeout))
	if _, err := pieces.WriteTo(s.conn); err != nil {
		return err
	}
	dotted := time.Now()
	_ = s.conn.SetDeadline(dotted.Add(replyTimeout))
	if err := s.expect(250); err != nil {
		return err
	}
	now := time.Now()
	s.dots = append(s.dots, now.Sub(dotted))
	s.whole = append(s.whole, now.Sub(s.opened))
	s.octets += int64(size)
	if o.Taken != nil {
		o.Taken.Add(int64(size))
	}
	s.opened = now
	if s.given++; s.given >= o.PerConnection {
		s.out = append(s.out[:0], "QUIT\r\n"...)
		_ = s.command(221) // The message is accepted, whatever this says.
		s.hangUp()
	}
	return nil
}

// connect makes sure that there is a conversation in which MAIL may come.
func (s *session) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	s.opened = time.Now()
	o := &s.run.o
	conn, err := o.Dial(ctx, o.Targets[s.target])
	if o.Rotate {
		s.target = (s.target + 1) % len(o.Targets)
	}
	if err != nil {
		return err
	}
	s.conn, s.given, s.pipes = conn, 0, false
	s.unhook = context.AfterFunc(ctx, func() { _ = conn.Close() })
	s.in.Reset(conn)
	_ = conn.SetDeadline(time.Now().Add(replyTimeout))
	if err := s.expect(220); err != nil {
		return err
	}
	s.out = append(s.out[:0], "EHLO load.sender.example\r\n"...)
	if _, err := s.conn.Write(s.out); err != nil {
		return err
	}
	return s.reply(250, func(line []byte) {
		s.pipes = s.pipes || bytes.EqualFold(line, []byte("PIPELINING"))
	})
}

// command writes what is in out and reads as many replies as codes are given.
func (s *session) command(codes ...int) error {
	_ = s.conn.SetDeadline(time.Now().Add(replyTimeout))
	if _, err := s.conn.Write(s.out); err != nil {
		return err
	}
	for _, code := range codes {
		if err := s.expect(code); err != nil {
			return err
		}
	}
	return nil
}

// expect reads one reply.
func (s *session) expect(code int) error { return s.reply(code, nil) }

// reply reads one reply and shows the text of each of its lines.
func (s *session) reply(code int, show func(text []byte)) error {
	for range linesMax {
		line, err := s.in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("no reply: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		got, err := strconv.Atoi(string(line[:min(3, len(line))]))
		if err != nil || len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
			return fmt.Errorf("reply %q", line)
		}
		if show != nil && len(line) > 3 {
			show(line[4:])
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if got != code {
			return &refusal{got, string(line)}
		}
		return nil
	}
	return fmt.Errorf("a reply of more than %d lines", linesMax)
}
