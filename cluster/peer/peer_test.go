package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	stored int // calls of StoreBody that returned nil

	storeBody func(ref mail.BodyRef) error
	openBody  func(ref mail.BodyRef) (io.ReadSeekCloser, error)
	propose   func(ctx context.Context, command []byte, body *mail.BodyRef) ([]byte, error)
	pull      func(ctx context.Context, r PullRequest) (PullReply, error)
}

func (b *backend) StoreBody(ref mail.BodyRef, chunks [][]byte) error {
	if b.storeBody != nil {
		if err := b.storeBody(ref); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bodies == nil {
		b.bodies = map[mail.BodyRef][]byte{}
	}
	b.bodies[ref] = bytes.Join(chunks, nil)
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

func (b *backend) Propose(ctx context.Context, command []byte, body *mail.BodyRef) ([]byte, error) {
	return b.propose(ctx, command, body)
}

func (b *backend) Pull(ctx context.Context, r PullRequest) (PullReply, error) { return b.pull(ctx, r) }

func (b *backend) Health() Health {
	return Health{ServerID: "b/1", Boot: 7, Applied: 42, Leader: true, Term: 3, Bodies: 2, BodyBytes: 99, DiskFree: 1 << 40, CommandVersion: 1}
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
	for i := range data {
		data[i] = byte(i*7) ^ n ^ byte(i>>11)
	}
	b := mail.NewBody(data)
	return b.Ref(mail.MintQueueID(1, [10]byte{n})), b
}

func TestPushStoresBodies(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		var wg sync.WaitGroup
		for i, size := range []int{0, 1, 1000, frameBytesMax, frameBytesMax + 1, 5 << 20, 70 << 20} {
			ref, body := body(byte(i), size)
			wg.Go(func() {
				if err := a.peers.Push(t.Context(), ref, body.Chunks(), "b"); err != nil {
					t.Error(err)
					return
				}
				got, ok := at.holds(ref)
				if !ok || mail.NewBody(got).Ref(ref.ID) != ref {
					t.Errorf("body %d of %d octets acknowledged, and not held as it was sent", i, size)
				}
			})
		}
		wg.Wait()
	})
}

// TestAckFollowsStore: the ack is sent after StoreBody has returned, and bodies
// are stored at the same time, so that they share an fsync.
func TestAckFollowsStore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		fsync := make(chan struct{})
		storing := make(chan mail.BodyRef, 3)
		at := &backend{storeBody: func(ref mail.BodyRef) error { storing <- ref; <-fsync; return nil }}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		acks := make(chan error, 3)
		for i := range byte(3) {
			ref, body := body(i, 3000)
			go func() { acks <- a.peers.Push(t.Context(), ref, body.Chunks(), "b") }()
		}
		for range 3 {
			<-storing
		}
		synctest.Wait()
		select {
		case err := <-acks:
			t.Fatalf("acknowledged (%v) before the body was stored", err)
		default:
		}
		close(fsync)
		for range 3 {
			if err := <-acks; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestPushRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		ref, good := body(1, 300_000)
		other := mail.NewBody(bytes.Repeat([]byte("x"), 300_000))
		_, short := body(1, 299_999)
		_, long := body(1, 300_001)
		for name, bad := range map[string]*mail.Body{"digest": other, "too short": short, "too long": long} {
			if err := a.peers.Push(t.Context(), ref, bad.Chunks(), "b"); !errors.Is(err, ErrMismatch) {
				t.Errorf("%s: %v, want ErrMismatch", name, err)
			}
		}
		if at.stored != 0 {
			t.Errorf("%d bodies that do not match were stored", at.stored)
		}
		at.storeBody = func(mail.BodyRef) error { return errors.New("no space left on device") }
		if err := a.peers.Push(t.Context(), ref, good.Chunks(), "b"); !errors.Is(err, ErrNotStored) {
			t.Errorf("store failed: %v, want ErrNotStored", err)
		}
		at.storeBody = nil
		if err := a.peers.Push(t.Context(), ref, good.Chunks(), "b"); err != nil {
			t.Errorf("the stream did not survive the refusals: %v", err)
		}
		huge := ref
		huge.Size = BodyBytesMax + 1
		if err := a.peers.Push(t.Context(), huge, nil, "b"); !errors.Is(err, ErrTooLarge) {
			t.Errorf("body over the limit: %v, want ErrTooLarge", err)
		}
	})
}

// TestPushReconnects: a push that was under way when the peer went arrives
// when it is back.
func TestPushReconnects(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		stuck := make(chan struct{})
		before := &backend{storeBody: func(mail.BodyRef) error { <-stuck; return errors.New("gone") }}
		a, b := w.start("a", new(backend)), w.start("b", before)
		defer a.close()
		acks := make(chan error, 20)
		for i := range byte(20) {
			ref, body := body(i, 100_000*int(i))
			go func() { acks <- a.peers.Push(t.Context(), ref, body.Chunks(), "b") }()
		}
		synctest.Wait()
		go func() { time.Sleep(time.Second); close(stuck) }()
		_ = b.port.Close() // As if killed: connections first.
		b.close()
		time.Sleep(time.Minute) // The bubble's clock.
		synctest.Wait()
		select {
		case err := <-acks:
			t.Fatalf("acknowledged (%v) while the peer was away", err)
		default:
		}
		after := new(backend)
		b = w.start("b", after)
		defer b.close()
		for range 20 {
			if err := <-acks; err != nil {
				t.Error(err)
			}
		}
		if after.stored != 20 {
			t.Errorf("%d bodies stored after the restart, want 20", after.stored)
		}
	})
}

// TestNewerStreamEndsOlder: a peer whose connection hangs, as after a cut, gets
// through on a new one at once.
func TestNewerStreamEndsOlder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		old, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer old.close()
		ref, body1 := body(1, 1000)
		if err := old.peers.Push(t.Context(), ref, body1.Chunks(), "b"); err != nil {
			t.Fatal(err)
		}
		renewed := w.start("a", new(backend)) // The same name once more.
		defer renewed.close()
		began := time.Now()
		ref, body2 := body(2, 1000)
		if err := renewed.peers.Push(t.Context(), ref, body2.Chunks(), "b"); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the new stream waited %v for the old one", waited)
		}
		b.server.mu.Lock()
		defer b.server.mu.Unlock()
		if len(b.server.inboxes) != 1 {
			t.Errorf("%d inboxes, want 1", len(b.server.inboxes))
		}
	})
}

// TestPushQueueIsBounded: a peer that stores nothing, or is not there, takes
// no more than its queue, and costs another peer's pushes nothing.
func TestPushQueueIsBounded(t *testing.T) {
	for _, to := range []string{"dead", "stuck"} {
		t.Run(to, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				release := make(chan struct{})
				stuck := &backend{storeBody: func(mail.BodyRef) error { <-release; return nil }}
				a, s, b := w.start("a", new(backend)), w.start("stuck", stuck), w.start("b", new(backend))
				defer s.close()
				defer b.close()
				defer a.close()
				defer close(release)
				ctx, cancel := context.WithCancel(t.Context())
				results := make(chan error, 200)
				ref, big := body(1, 1<<20)
				for i := range 200 {
					ref := ref
					ref.ID[15] = byte(i)
					go func() { results <- a.peers.Push(ctx, ref, big.Chunks(), to) }()
					synctest.Wait()
				}
				full := len(results)
				for range full {
					if err := <-results; !errors.Is(err, ErrQueueFull) {
						t.Errorf("%v, want ErrQueueFull", err)
					}
				}
				want := 200 - 64 // queueBytesMax in MiB
				if to == "stuck" {
					want -= 64 // windowBytesMax in MiB
				}
				if full != want {
					t.Errorf("%d of 200 pushes of 1 MiB refused, want %d", full, want)
				}
				ref, small := body(2, 100)
				if err := a.peers.Push(ctx, ref, small.Chunks(), "b"); err != nil {
					t.Errorf("push to another peer: %v", err)
				}
				cancel()
				for range 200 - full {
					if err := <-results; !errors.Is(err, context.Canceled) {
						t.Errorf("%v, want Canceled", err)
					}
				}
				p := a.peers.byName[to].pusher
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.line) != 0 || p.lineOctets != 0 {
					t.Errorf("%d bodies, %d octets in line after all callers left", len(p.line), p.lineOctets)
				}
			})
		})
	}
}

// TestAbandonedBodies: a caller that leaves frees its place in the window, on
// both sides, and the stream goes on.
func TestAbandonedBodies(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		for i := range byte(30) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Microsecond)
			ref, large := body(i, 8<<20)
			_ = a.peers.Push(ctx, ref, large.Chunks(), "b")
			cancel()
		}
		ref, large := body(99, 60<<20)
		if err := a.peers.Push(t.Context(), ref, large.Chunks(), "b"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p := a.peers.byName["b"].pusher
		p.mu.Lock()
		defer p.mu.Unlock()
		b.server.mu.Lock()
		in := b.server.inboxes["a"]
		b.server.mu.Unlock()
		in.mu.Lock()
		defer in.mu.Unlock()
		if len(p.window) != 0 || p.windowOctets != 0 || in.bodies != 0 || in.octets != 0 {
			t.Errorf("windows not empty: %d bodies, %d octets here; %d, %d there", len(p.window), p.windowOctets, in.bodies, in.octets)
		}
	})
}

func TestFetch(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := new(backend)
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		for i, size := range []int{0, 1, frameBytesMax, 3<<20 + 17} {
			ref, body := body(byte(i), size)
			if err := at.StoreBody(ref, body.Chunks()); err != nil {
				t.Fatal(err)
			}
			got, err := a.peers.Fetch(t.Context(), "b", ref)
			if err != nil || got.Ref(ref.ID) != ref {
				t.Errorf("%d octets: %v", size, err)
			}
		}
		ref, good := body(50, 500_000)
		if _, err := a.peers.Fetch(t.Context(), "b", ref); !errors.Is(err, ErrNotHeld) {
			t.Errorf("absent: %v, want ErrNotHeld", err)
		}
		wrong := bytes.Join(good.Chunks(), nil)
		wrong[400_000] ^= 1
		at.bodies[ref] = wrong
		if _, err := a.peers.Fetch(t.Context(), "b", ref); !errors.Is(err, ErrMismatch) {
			t.Errorf("flipped bit: %v, want ErrMismatch", err)
		}
		at.bodies[ref] = wrong[:300_000]
		if _, err := a.peers.Fetch(t.Context(), "b", ref); !errors.Is(err, ErrDamaged) {
			t.Errorf("truncated: %v, want ErrDamaged", err)
		}
		if _, err := a.peers.Fetch(t.Context(), "dead", ref); !errors.Is(err, ErrUnreachable) {
			t.Errorf("dead peer: %v, want ErrUnreachable", err)
		}
	})
}

// TestFetchResumes: a fetch goes on behind what it has when the connection
// broke.
func TestFetchResumes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ref, data := body(1, 20<<20)
		whole := bytes.Join(data.Chunks(), nil)
		var mu sync.Mutex
		var offsets []int64
		at := &backend{}
		at.openBody = func(mail.BodyRef) (io.ReadSeekCloser, error) {
			return &breakingReader{Reader: bytes.NewReader(whole), seek: func(o int64) {
				mu.Lock()
				defer mu.Unlock()
				offsets = append(offsets, o)
			}, after: 6 << 20, breakNow: func() { w.net.breakConns("b") }}, nil
		}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		got, err := a.peers.Fetch(t.Context(), "b", ref)
		if err != nil || got.Ref(ref.ID) != ref {
			t.Fatalf("fetch: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(offsets) < 2 {
			t.Fatalf("offsets %v: nothing broke", offsets)
		}
		for i := 1; i < len(offsets); i++ {
			if offsets[i] <= offsets[i-1] {
				t.Errorf("offsets %v: a resumed fetch began again", offsets)
			}
		}
	})
}

// A breakingReader breaks the connections after so many octets.
type breakingReader struct {
	*bytes.Reader
	seek     func(int64)
	after    int
	breakNow func()
}

func (r *breakingReader) Seek(o int64, whence int) (int64, error) {
	r.seek(o)
	return r.Reader.Seek(o, whence)
}

func (r *breakingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.after -= n; r.after < 0 && r.after+n >= 0 {
		r.breakNow()
	}
	return n, err
}

func (r *breakingReader) Close() error { return nil }

func TestProposeErrors(t *testing.T) {
	ref, _ := body(1, 10)
	for _, tt := range []struct {
		name    string
		propose func(ctx context.Context, w *world) error
		want    error
	}{
		{"leader refuses", func(context.Context, *world) error { return fmt.Errorf("not leading: %w", ErrNotAppended) }, ErrNotAppended},
		{"leader refuses and names another", func(context.Context, *world) error {
			return &NotAppendedError{Reason: "not leading", Leader: "c/9"}
		}, ErrNotAppended},
		{"too large", func(context.Context, *world) error { return fmt.Errorf("entry: %w", ErrTooLarge) }, ErrTooLarge},
		{"leader cannot tell", func(context.Context, *world) error { return ErrOutcomeUnknown }, ErrOutcomeUnknown},
		{"an error of no kind", func(context.Context, *world) error { return errors.New("leadership lost") }, ErrOutcomeUnknown},
		{"deadline", func(ctx context.Context, _ *world) error { <-ctx.Done(); return ctx.Err() }, ErrOutcomeUnknown},
		{"connection breaks", func(ctx context.Context, w *world) error {
			w.net.breakConns("b")
			<-ctx.Done()
			return ctx.Err()
		}, ErrOutcomeUnknown},
		// The server's own word for a refusal does not count once the caller has
		// gone: nobody reads it.
		{"refusal after the deadline", func(ctx context.Context, _ *world) error { <-ctx.Done(); return ErrNotAppended }, ErrOutcomeUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				var calls int
				at := &backend{propose: func(ctx context.Context, command []byte, body *mail.BodyRef) ([]byte, error) {
					calls++
					if string(command) != "command" || body == nil || *body != ref {
						t.Errorf("proposed %q with body %v", command, body)
					}
					return nil, tt.propose(ctx, w)
				}}
				a, b := w.start("a", new(backend)), w.start("b", at)
				defer b.close()
				defer a.close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.peers.Propose(ctx, "b", []byte("command"), &ref)
				if !errors.Is(err, tt.want) {
					t.Fatalf("%v, want %v", err, tt.want)
				}
				certain, unknown := errors.Is(err, ErrNotAppended), errors.Is(err, ErrOutcomeUnknown)
				if certain == unknown {
					t.Fatalf("%v is not exactly one of ErrNotAppended and ErrOutcomeUnknown", err)
				}
				var named *NotAppendedError
				if tt.name == "leader refuses and names another" && (!errors.As(err, &named) || named.Leader != "c/9") {
					t.Errorf("%v does not name the leader", err)
				}
				synctest.Wait()
				if calls != 1 {
					t.Errorf("the command was proposed %d times, want once", calls)
				}
			})
		})
	}
}

func TestProposeCertainties(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := &backend{propose: func(_ context.Context, command []byte, body *mail.BodyRef) ([]byte, error) {
			if body != nil {
				t.Errorf("body %v out of nothing", body)
			}
			return append([]byte("result of "), command...), nil
		}}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer a.close()
		got, err := a.peers.Propose(t.Context(), "b", []byte("c"), nil)
		if err != nil || string(got) != "result of c" {
			t.Fatalf("%q, %v", got, err)
		}
		_, err = a.peers.Propose(t.Context(), "b", make([]byte, ProposeBytesMax+1), nil)
		if !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrNotAppended) {
			t.Errorf("too large: %v", err)
		}
		for _, dead := range []string{"dead", "nowhere"} {
			if _, err := a.peers.Propose(t.Context(), dead, []byte("c"), nil); !errors.Is(err, ErrNotAppended) {
				t.Errorf("%s: %v, want ErrNotAppended: nothing was sent", dead, err)
			}
		}
		b.close()
		synctest.Wait()
		if _, err := a.peers.Propose(t.Context(), "b", []byte("c"), nil); !errors.Is(err, ErrNotAppended) {
			t.Errorf("leader gone before the call: %v, want ErrNotAppended", err)
		}
		b = w.start("b", at)
		defer b.close()
		time.Sleep(2 * reconnectMax) // The bubble's clock.
		if _, err := a.peers.Propose(t.Context(), "b", []byte("c"), nil); err != nil {
			t.Errorf("leader back: %v", err)
		}
		_ = a.peers.Close()
		if _, err := a.peers.Propose(t.Context(), "b", []byte("c"), nil); !errors.Is(err, ErrNotAppended) || !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := a.peers.Push(t.Context(), mail.BodyRef{}, nil, "b"); !errors.Is(err, ErrClosed) {
			t.Errorf("push after Close: %v", err)
		}
	})
}

func TestPullAndHealth(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ref, _ := body(1, 1)
		var pullErr error
		at := &backend{pull: func(_ context.Context, r PullRequest) (PullReply, error) {
			if r != (PullRequest{Holder: "a", Domain: "example.org", Max: 3}) {
				t.Errorf("pull %+v", r)
			}
			return PullReply{Token: 17, Messages: []mail.QueueID{ref.ID}}, pullErr
		}}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		got, err := a.peers.Pull(t.Context(), "b", PullRequest{Holder: "a", Domain: "example.org", Max: 3})
		if err != nil || got.Token != 17 || len(got.Messages) != 1 || got.Messages[0] != ref.ID {
			t.Errorf("%+v, %v", got, err)
		}
		pullErr = errors.New("not leading")
		if _, err := a.peers.Pull(t.Context(), "b", PullRequest{Holder: "a", Domain: "example.org", Max: 3}); err == nil {
			t.Error("a refused pull succeeds")
		}
		for _, bad := range []PullRequest{
			{Holder: "c", Domain: "example.org", Max: 3}, // A lease for somebody else.
			{Holder: "a", Domain: "Example.ORG", Max: 3},
			{Holder: "a", Domain: "", Max: 3},
			{Holder: "a", Domain: "example.org", Max: -1},
		} {
			if got, err := a.peers.Pull(t.Context(), "b", bad); err == nil {
				t.Errorf("pull %+v: %+v", bad, got)
			}
		}
		h, err := a.peers.Health(t.Context(), "b")
		if err != nil || h != at.Health() {
			t.Errorf("%+v, %v", h, err)
		}
		if !a.peers.Ready("b") || a.peers.Ready("dead") {
			t.Error("Ready does not tell who is there")
		}
	})
}
