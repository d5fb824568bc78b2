package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A pipeNet is a network in memory. Cutting a name closes its connections and
// refuses new ones.
type pipeNet struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	conns     map[string][]net.Conn
	delay     time.Duration // of each Read, on the bubble's clock
}

// A slowConn takes its time to read.
type slowConn struct {
	net.Conn
	delay time.Duration
}

func (c slowConn) Read(p []byte) (int, error) {
	time.Sleep(c.delay)
	return c.Conn.Read(p)
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
	if n.delay > 0 {
		here, there = slowConn{here, n.delay}, slowConn{there, n.delay}
	}
	select {
	case l.conns <- there:
		n.mu.Lock()
		n.conns[address] = append(n.conns[address], here, there)
		n.mu.Unlock()
		return here, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// breakConns closes the connections to a name.
func (n *pipeNet) breakConns(address string) {
	n.mu.Lock()
	conns := n.conns[address]
	delete(n.conns, address)
	n.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
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

// A world is a cluster's CA and network.
type world struct {
	t   *testing.T
	ca  transport.Pair
	net *pipeNet
}

// bubble runs f in a synctest bubble. A goroutine that outlives f fails it.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := transport.CreateCA("demo", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		f(t, &world{t: t, ca: ca, net: &pipeNet{listeners: map[string]*pipeListener{}, conns: map[string][]net.Conn{}}})
	})
}

// A node is one port with a server and clients on it.
type node struct {
	port   *transport.Port
	server *Server
	peers  *Peers
	served sync.WaitGroup
}

func (w *world) start(name string, b Backend) *node {
	w.t.Helper()
	pair, err := transport.IssueNode(w.ca, name, nil, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := transport.NewIdentity(w.ca.Cert, pair, "demo")
	if err != nil {
		w.t.Fatal(err)
	}
	port, err := transport.New(w.net.listen(name), w.net.dial, id, transport.Options{ServerID: transport.ServerID(name + "/1")})
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{port: port, server: NewServer(b, nil)}
	n.peers = NewPeers(Config{
		Dial:    port.DialPeer,
		Address: func(name string) (string, bool) { return name, name != "nowhere" },
		Log:     slog.New(slog.DiscardHandler),
	})
	n.served.Go(func() {
		if err := n.server.Serve(port.GRPC()); err != nil {
			w.t.Error(err)
		}
	})
	return n
}

func (n *node) close() {
	_ = n.peers.Close()
	n.server.Close()
	_ = n.port.Close()
	n.served.Wait()
}

// A backend is a Backend of functions; a nil one stores bodies in memory.
type backend struct {
	mu     sync.Mutex
	bodies map[mail.BodyRef][]byte
	stored int   // calls of StoreBody that returned nil
	early  []int // what StoreBodies says that it has taken

	storeBody func(ref mail.BodyRef) error
	openBody  func(ref mail.BodyRef) (io.ReadSeekCloser, error)
	propose   func(ctx context.Context, command []byte, body *mail.BodyRef) ([]byte, error)
	pull      func(ctx context.Context, r PullRequest) (PullReply, error)
	scrub     func(from string, a ScrubAction) (Scrub, error)
	servers   func(from string, m Membership) (string, error)
}

func (b *backend) StoreBodies(bodies []Arrived, taken func([]int)) []error {
	errs := make([]error, len(bodies))
	taken(b.early)
	var storing sync.WaitGroup
	for i, a := range bodies {
		storing.Go(func() { errs[i] = b.store(a) })
	}
	storing.Wait()
	return errs
}

func (b *backend) store(a Arrived) error {
	if b.storeBody != nil {
		if err := b.storeBody(a.Ref); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bodies == nil {
		b.bodies = map[mail.BodyRef][]byte{}
	}
	b.bodies[a.Ref] = bytes.Join(a.Body.Chunks(), nil)
	b.stored++
	return nil
}

func (b *backend) OpenBody(ref mail.BodyRef) (io.ReadSeekCloser, error) {
	if b.openBody != nil {
		return b.openBody(ref)
	}
	data, ok := b.holds(ref)
	if !ok {
		return nil, fmt.Errorf("spool: %w", ErrNotHeld)
	}
	return readCloser{bytes.NewReader(data)}, nil
}

type readCloser struct{ io.ReadSeeker }

func (readCloser) Close() error { return nil }

func (b *backend) Propose(ctx context.Context, _ string, proposals []Proposal) []Outcome {
	outcomes := make([]Outcome, len(proposals))
	for i, p := range proposals {
		outcomes[i].Result, outcomes[i].Err = b.propose(ctx, p.Command, p.Body)
	}
	return outcomes
}

func (b *backend) Pull(ctx context.Context, r PullRequest) (PullReply, error) { return b.pull(ctx, r) }

func (b *backend) Health(q Inquiry) Health {
	return Health{
		ServerID: "b/1", Boot: 7, Applied: 42, Leader: !q.Brief, Term: 3, Bodies: 2, BodyBytes: 99, DiskFree: 1 << 40, CommandVersion: 1,
		DiskLow: true, DiskFull: true, SeenOK: q.ServerID != "", Seen: Seen{uint64(len(q.ServerID)), 2, 3, 4},
		Hydration: Hydration{Known: true, Missing: 1, MissingBytes: 2, Fetched: 3, FetchedBytes: 4, Rate: 5, NotFound: 6, WaitingFor: "c", LastError: "broken", LastErrorUnix: 8},
		Scrub:     testScrub,
	}
}

var testScrub = Scrub{Running: true, Stopped: true, BeganUnix: 1, EndedUnix: 2, Bodies: 3, Bytes: 4, Total: 5, TotalBytes: 6, Bad: 7, Repaired: 8, Unread: 9, Problem: "none"}

// Digest knows one entry that is still to come.
func (b *backend) Digest(_ context.Context, after uint64) (Digest, error) {
	switch {
	case after < testDigest.Index:
		return Digest{}, ErrPassed
	case after > testDigest.Index:
		return Digest{}, errors.New("nothing comes")
	}
	return testDigest, nil
}

var testDigest = Digest{Index: 12, Sum: [32]byte{1, 2, 31: 3}, Messages: 4}

func (b *backend) ChangeServers(_ context.Context, from string, m Membership) (string, error) {
	if b.servers == nil {
		return "", errors.New("no change of servers expected")
	}
	return b.servers(from, m)
}

func (b *backend) Scrub(from string, a ScrubAction) (Scrub, error) {
	if b.scrub != nil {
		return b.scrub(from, a)
	}
	return testScrub, nil
}

func (b *backend) holds(ref mail.BodyRef) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.bodies[ref]
	return data, ok
}

// body returns a body of size octets, different for each n.
func body(n byte, size int) (mail.BodyRef, *mail.Body) {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{n}).Read(data) // Never fails.
	b := mail.NewBody(data)
	return b.Ref(mail.MintQueueID(1, [10]byte{n})), b
}

// push pushes a body and waits for what comes of it; the end of ctx abandons it.
func (n *node) push(ctx context.Context, ref mail.BodyRef, b *mail.Body, to string) error {
	done := make(chan error, 1)
	p := n.peers.Push(ref, b, to, Taken, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		p.Abandon()
		return ctx.Err()
	}
}

// propose proposes one command.
func (n *node) propose(ctx context.Context, to string, command []byte, ref *mail.BodyRef) ([]byte, error) {
	o := n.peers.Propose(ctx, to, []Proposal{{Command: command, Body: ref}})[0]
	return o.Result, o.Err
}
