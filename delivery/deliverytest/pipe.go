package deliverytest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipeBytes is how much one direction of a Pipe holds before a write waits.
const pipeBytes = 256 << 10

// Pipe returns the two ends of a connection in memory. Unlike net.Pipe's it is
// buffered, as a network is, so both sides may write before they read. It lives
// in a synctest bubble.
func Pipe() (client, server net.Conn) {
	up, down := newStream(), newStream()
	return &end{in: down, out: up}, &end{in: up, out: down}
}

// A stream is one direction.
type stream struct {
	mu       sync.Mutex
	moved    *sync.Cond
	held     []byte
	finished bool // the writer closed
	deaf     bool // the reader closed
	severed  bool // reset, from either side
	reading  limit
	writing  limit
}

// A limit is a deadline that wakes who waits.
type limit struct {
	at    time.Time
	timer *time.Timer
}

func (l *limit) passed() bool { return !l.at.IsZero() && !time.Now().Before(l.at) }

func (l *limit) set(s *stream, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.at = at
	if !at.IsZero() {
		l.timer = time.AfterFunc(time.Until(at), s.moved.Broadcast)
	}
	s.moved.Broadcast()
}

func newStream() *stream {
	s := &stream{}
	s.moved = sync.NewCond(&s.mu)
	return s
}

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.deaf:
			return 0, net.ErrClosed
		case s.severed:
			return 0, syscall.ECONNRESET
		case s.reading.passed():
			return 0, os.ErrDeadlineExceeded
		case len(s.held) > 0:
			n := copy(p, s.held)
			s.held = s.held[n:]
			s.moved.Broadcast()
			return n, nil
		case s.finished:
			return 0, io.EOF
		}
		s.moved.Wait()
	}
}

// sever drops what is held, and fails every later read and write.
func (s *stream) sever() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.severed, s.held = true, nil
	s.moved.Broadcast()
}

// ended reports whether the writer has closed.
func (s *stream) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finished || s.severed
}

// readable reports whether a read would not wait.
func (s *stream) readable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) > 0 || s.finished || s.severed
}

// awaitFinished waits until the writer has closed.
func (s *stream) awaitFinished() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.finished && !s.deaf {
		s.moved.Wait()
	}
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for {
		switch {
		case s.finished:
			return n, net.ErrClosed
		case s.severed:
			return n, syscall.ECONNRESET
		case s.deaf:
			return n, syscall.EPIPE
		case s.writing.passed():
			return n, os.ErrDeadlineExceeded
		}
		took := min(len(p), pipeBytes-len(s.held))
		s.held = append(s.held, p[:took]...)
		n, p = n+took, p[took:]
		s.moved.Broadcast()
		if len(p) == 0 {
			return n, nil
		}
		s.moved.Wait()
	}
}

func (s *stream) close(writer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if writer {
		s.finished = true
	} else {
		s.deaf, s.held = true, nil
	}
	for _, l := range []*limit{&s.reading, &s.writing} {
		if l.timer != nil {
			l.timer.Stop()
		}
	}
	s.moved.Broadcast()
}

// An end is one side.
type end struct{ in, out *stream }

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }
func (e *end) Close() error {
	e.out.close(true)
	e.in.close(false)
	return nil
}

// Readable reports whether a Read would not wait: a socket can say that too.
func (e *end) Readable() bool { return e.in.readable() }

// sever ends the connection as a reset does: what is under way is lost.
func (e *end) sever() {
	e.out.sever()
	e.in.sever()
}

func (e *end) LocalAddr() net.Addr               { return memory{} }
func (e *end) RemoteAddr() net.Addr              { return memory{} }
func (e *end) SetReadDeadline(t time.Time) error { e.in.reading.set(e.in, t); return nil }
func (e *end) SetWriteDeadline(t time.Time) error {
	e.out.writing.set(e.out, t)
	return nil
}
func (e *end) SetDeadline(t time.Time) error {
	_ = e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

// memory is the address of both ends.
type memory struct{}

func (memory) Network() string { return "pipe" }
func (memory) String() string  { return "pipe" }
