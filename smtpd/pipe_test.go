package smtpd_test

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/smtpd"
)

// pipeListener hands out in-memory connections, for tests in a bubble, where
// time is fake and the figures below are exact.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr("server") }

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

// addressed gives a connection the address of a client.
type addressed struct {
	net.Conn
	from string
}

func (c addressed) RemoteAddr() net.Addr { return pipeAddr(c.from) }

// connect returns a client of the server behind l.
func (l *pipeListener) connect(t testing.TB, from string) *client {
	t.Helper()
	ours, theirs := net.Pipe()
	l.conns <- addressed{theirs, from}
	c := newClient(t, ours)
	_ = ours.SetDeadline(time.Time{})
	return c
}

// bubble runs a test with a server in fake time.
func bubble(t *testing.T, q *fakeQueue, change func(*smtpd.Config), test func(t *testing.T, s *smtpd.Server, l *pipeListener)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		q.changed = make(chan struct{})
		l := newPipeListener()
		s := startOn(t, l, q, change)
		test(t, s, l)
	})
}
