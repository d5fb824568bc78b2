package deliverytest

import (
	"net"
	"sync/atomic"
)

// Turns is the server's end of a Pipe over a long way: what the server says
// waits until it has read all that has come and wants more, and then arrives at
// once. Each time is one turn, that is, one round trip that the client waited
// for.
type Turns struct {
	net.Conn
	from *stream
	said []byte // only the server's goroutine touches it
	n    atomic.Int64
}

// NewTurns takes the second of what Pipe returns.
func NewTurns(server net.Conn) *Turns { return &Turns{Conn: server, from: server.(*end).in} }

// Count returns how many turns there were.
func (t *Turns) Count() int { return int(t.n.Load()) }

func (t *Turns) Write(p []byte) (int, error) {
	t.said = append(t.said, p...)
	return len(p), nil
}

func (t *Turns) Read(p []byte) (int, error) {
	if len(t.said) > 0 && t.from.empty() {
		t.n.Add(1)
		if err := t.flush(); err != nil {
			return 0, err
		}
	}
	return t.Conn.Read(p)
}

func (t *Turns) flush() error {
	_, err := t.Conn.Write(t.said)
	t.said = t.said[:0]
	return err
}

// Close says what is left to say.
func (t *Turns) Close() error {
	_ = t.flush()
	return t.Conn.Close()
}

func (s *stream) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held) == 0
}
