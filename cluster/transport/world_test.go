package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pipeNet is a network in memory: addresses are names, connections net.Pipes.
type pipeNet struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

type pipeListener struct {
	name  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (n *pipeNet) listen(name string) *pipeListener {
	l := &pipeListener{name: name, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = make(map[string]*pipeListener)
	}
	n.listeners[name] = l
	return l
}

func (n *pipeNet) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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
func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.name) }

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

// A world is a CA and a network.
type world struct {
	t       *testing.T
	cluster string
	ca      Pair
	net     *pipeNet
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := CreateCA("demo", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, cluster: "demo", ca: ca, net: new(pipeNet)}
}

func (w *world) identity(name string) *Identity {
	w.t.Helper()
	pair, err := IssueNode(w.ca, name, nil, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := NewIdentity(w.ca.Cert, pair, w.cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// port opens a port for the server id at the address that is the node's name.
func (w *world) port(id ServerID, o Options) *Port {
	w.t.Helper()
	o.ServerID = id
	p, err := New(w.net.listen(id.Name()), w.net.dial, w.identity(id.Name()), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func mustClose(t *testing.T, cs ...io.Closer) {
	t.Helper()
	for _, c := range cs {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// accepted runs Accept in the background.
func accepted(ln interface{ Accept() (net.Conn, error) }) <-chan net.Conn {
	ch := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			ch <- c
		}
		close(ch)
	}()
	return ch
}

// bubble runs f in a synctest bubble; whatever goroutine is left when the test
// has closed its ports fails it.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}
