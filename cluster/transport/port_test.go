package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestALPNSortsConnections(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		defer mustClose(t, a, b)
		ctx := t.Context()
		raft, grpc := accepted(b.Raft()), accepted(b.GRPC())

		c, err := a.DialPeer(ctx, "b", "b")
		if err != nil {
			t.Fatal(err)
		}
		got := <-grpc
		if name, ok := PeerName(got); !ok || name != "a" {
			t.Fatalf("gRPC connection from %q %v, want a", name, ok)
		}
		if _, ok := PeerServerID(got); ok {
			t.Fatal("a gRPC connection has a server id")
		}
		if name, ok := PeerName(c); !ok || name != "b" {
			t.Fatalf("dialled %q %v, want b", name, ok)
		}
		synctest.Wait()
		select {
		case <-raft:
			t.Fatal("a gRPC connection reached Raft")
		default:
		}

		grpc = accepted(b.GRPC())
		d, err := a.Raft().Dial(ctx, "b/1", "b")
		if err != nil {
			t.Fatal(err)
		}
		got = <-raft
		if id, _ := PeerServerID(got); id != "a/1" {
			t.Fatalf("Raft connection from %q, want a/1", id)
		}
		if id, _ := PeerServerID(d); id != "b/1" {
			t.Fatalf("dialled %q, want b/1", id)
		}
		synctest.Wait()
		select {
		case <-grpc:
			t.Fatal("a Raft connection reached gRPC")
		default:
		}
		go func() { _, _ = d.Write([]byte("append")) }()
		buf := make([]byte, 6)
		if _, err := io.ReadFull(got, buf); err != nil || string(buf) != "append" {
			t.Fatalf("read %q, %v: the hello must eat nothing of what follows", buf, err)
		}
		for kind, n := range b.Refusals() {
			if n != 0 {
				t.Errorf("%d refusals at %s", n, kind)
			}
		}
	})
}

// TestStartsAreCompared: a connection is made only where neither side is known to
// have started more often than it says.
func TestStartsAreCompared(t *testing.T) {
	knows := func(number uint64) func(ServerID) (uint64, bool) {
		return func(ServerID) (uint64, bool) { return number, true }
	}
	for _, tt := range []struct {
		name               string
		start, other       uint64 // of the dialling side and of the other
		known, knownOfThem uint64 // what the other knows of us, and we of it
		want               error
		theirs             bool // what is wrong is wrong with them
	}{
		{"both known", 3, 4, 3, 4, nil, false},
		{"both newer than known", 3, 4, 2, 1, nil, false},
		{"we are old", 2, 4, 3, 4, ErrOutdated, false},
		{"they are old", 3, 3, 3, 4, ErrOutdated, true},
		{"both are old", 2, 3, 3, 4, ErrOutdated, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a := w.port("a/1", Options{Start: tt.start, Known: knows(tt.knownOfThem)})
				b := w.port("b/1", Options{Start: tt.other, Known: knows(tt.known)})
				defer mustClose(t, a, b)
				raft := accepted(b.Raft())
				c, err := a.Raft().Dial(t.Context(), "b/1", "b")
				if !errors.Is(err, tt.want) || errors.Is(err, ErrPeer) != tt.theirs {
					t.Fatalf("%v", err)
				}
				if err == nil {
					<-raft
					mustClose(t, c)
				}
			})
		})
	}
	t.Run("we do not know yet", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			a := w.port("a/1", Options{Start: 1, Known: func(ServerID) (uint64, bool) { return 0, false }})
			b := w.port("b/1", Options{Start: 1})
			defer mustClose(t, a, b)
			if _, err := a.Raft().Dial(t.Context(), "b/1", "b"); !errors.Is(err, ErrNotYet) {
				t.Errorf("%v", err)
			}
		})
	})
}

// TestHelloOfVersion1: nodes that do not say how often they have started are
// spoken with as before, in both directions, and are not judged by it.
func TestHelloOfVersion1(t *testing.T) {
	known := func(ServerID) (uint64, bool) { return 7, true }
	t.Run("it answers", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			a, old := w.port("a/1", Options{Start: 1, Known: known}), w.port("b/1", Options{Start: 1})
			defer mustClose(t, a, old)
			old.server.NextProtos = []string{protocolRaft1, protocolGRPC}
			raft := accepted(old.Raft())
			c, err := a.Raft().Dial(t.Context(), "b/1", "b")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = c.Write([]byte("x")) }()
			if buf := make([]byte, 1); true {
				if _, err := io.ReadFull(<-raft, buf); err != nil || buf[0] != 'x' {
					t.Fatalf("%q, %v", buf, err)
				}
			}
		})
	})
	t.Run("it dials", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			old, b := w.port("a/1", Options{Start: 1}), w.port("b/1", Options{Start: 9, Known: known})
			defer mustClose(t, old, b)
			raft := accepted(b.Raft())
			c, err := old.dialTLS(t.Context(), "b", "b", protocolRaft1)
			if err != nil {
				t.Fatal(err)
			}
			if err := old.sayHello(c, "b/1"); err != nil {
				t.Fatal(err)
			}
			if id, _ := PeerServerID(<-raft); id != "a/1" {
				t.Errorf("%s", id)
			}
		})
	})
}

func TestHelloRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
		want  error
	}{
		{"other cluster", hello{2, "other", "a/1", "b/1", 1}.encode(), ErrWrongCluster},
		{"somebody else's name", hello{2, "demo", "c/1", "b/1", 1}.encode(), ErrWrongName},
		{"no incarnation", hello{2, "demo", "a", "b/1", 1}.encode(), ErrWrongName},
		{"old incarnation of the acceptor", hello{2, "demo", "a/1", "b/0", 5}.encode(), ErrWrongServer},
		{"another server", hello{2, "demo", "a/1", "c/1", 1}.encode(), ErrWrongServer},
		{"old data directory", hello{2, "demo", "a/1", "b/1", 4}.encode(), ErrOutdated},
		{"start behind that", hello{2, "demo", "a/2", "b/1", 4}.encode(), ErrNotYet},
		{"other version", []byte{9, 0, 0}, io.EOF},
		{"version of another protocol", hello{1, "demo", "a/1", "b/1", 0}.encode(), io.EOF},
		{"no number of the start", []byte{helloVersion, 0, 6, 1, 'x', 1, 'y', 1, 'z'}, io.EOF},
		{"length above the limit", []byte{helloVersion, 0xff, 0xff}, io.EOF},
		{"a field longer than the frame", []byte{helloVersion, 0, 2, 200, 'x'}, io.EOF},
		{"octets behind the fields", []byte{helloVersion, 0, 7, 1, 'x', 1, 'y', 1, 'z', 0}, io.EOF},
		{"random octets", bytes.Repeat([]byte{0xa5}, 64), io.EOF},
		{"nothing at all", nil, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a := w.port("a/1", Options{})
				b := w.port("b/1", Options{Known: func(id ServerID) (uint64, bool) { return 5, id != "a/2" }})
				defer mustClose(t, a, b)
				raft := accepted(b.Raft())
				c, err := a.dialTLS(t.Context(), "b", "b", protocolRaft)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.SetDeadline(time.Time{}); err != nil {
					t.Fatal(err)
				}
				go func() { _, _ = c.Write(tt.frame) }()
				var answer [2]byte
				_, err = io.ReadFull(c, answer[:])
				if err == nil {
					err = helloAnswer(answer[1]).err()
				}
				if !errors.Is(err, tt.want) {
					t.Fatalf("answer: %v, want %v", err, tt.want)
				}
				synctest.Wait()
				select {
				case <-raft:
					t.Fatal("the connection reached Raft")
				default:
				}
				if n := b.Refusals()[RefusedHello]; n != 1 {
					t.Fatalf("%d refusals counted, want 1", n)
				}
			})
		})
	}
}

func TestRaftDialTellsWhy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := w.port("a/1", Options{})
		b := w.port("b/2", Options{})
		defer mustClose(t, a, b)
		if _, err := a.Raft().Dial(t.Context(), "b/1", "b"); !errors.Is(err, ErrWrongServer) {
			t.Errorf("dial to an old incarnation: %v, want ErrWrongServer", err)
		}
		if _, err := a.Raft().Dial(t.Context(), "c/1", "b"); !errors.Is(err, ErrWrongName) {
			t.Errorf("dial to another node's address: %v, want ErrWrongName", err)
		}
		if _, err := a.DialPeer(t.Context(), "c", "b"); !errors.Is(err, ErrWrongName) {
			t.Errorf("dial to another node's address: %v, want ErrWrongName", err)
		}
	})
}

// offer connects to b with the given TLS configuration and reports whether b
// let the connection through to either listener, and what the stranger read.
func offer(t *testing.T, w *world, b *Port, config *tls.Config) (through bool, read []byte) {
	t.Helper()
	raft, grpc := accepted(b.Raft()), accepted(b.GRPC())
	raw, err := w.net.dial(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	c := tls.Client(raw, config)
	if err := c.Handshake(); err == nil {
		_, _ = c.Write(hello{2, "demo", "a/1", "b/1", 1}.encode())
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		read, _ = io.ReadAll(c)
	}
	synctest.Wait()
	select {
	case <-raft:
		return true, read
	case <-grpc:
		return true, read
	default:
		return false, read
	}
}

func TestCertificatesRefusedByPort(t *testing.T) {
	now := time.Now
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, w *world, c *tls.Config)
		ok     bool
	}{
		{"the control: a proper node", func(*testing.T, *world, *tls.Config) {}, true},
		{"no certificate", func(_ *testing.T, _ *world, c *tls.Config) { c.Certificates = nil }, false},
		{"other CA of the same cluster name", func(t *testing.T, w *world, c *tls.Config) {
			ca, _ := CreateCA("demo", now())
			use(t, c, ca, roleNode, "a", now())
		}, false},
		{"other cluster under the same CA key", func(t *testing.T, w *world, c *tls.Config) {
			use(t, c, recast(t, w.ca, "other"), roleNode, "a", now())
		}, false},
		{"expired", func(t *testing.T, w *world, c *tls.Config) {
			use(t, c, w.ca, roleNode, "a", now())
			time.Sleep(NodeLifetime + time.Hour) // The bubble's clock.
		}, false},
		{"not yet valid", func(t *testing.T, w *world, c *tls.Config) {
			use(t, c, w.ca, roleNode, "a", now().Add(48*time.Hour))
		}, false},
		{"role admin", func(t *testing.T, w *world, c *tls.Config) {
			use(t, c, w.ca, "admin", "a", now())
		}, false},
		{"the CA itself", func(t *testing.T, w *world, c *tls.Config) {
			cert, err := tls.X509KeyPair(w.ca.Cert, w.ca.Key)
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{cert}
		}, false},
		{"TLS 1.2", func(_ *testing.T, _ *world, c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		}, false},
		{"no ALPN", func(_ *testing.T, _ *world, c *tls.Config) { c.NextProtos = nil }, false},
		{"unknown ALPN", func(_ *testing.T, _ *world, c *tls.Config) { c.NextProtos = []string{"h2"} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				b := w.port("b/1", Options{})
				defer mustClose(t, b)
				c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocolRaft}, Time: func() time.Time { return now() }}
				use(t, c, w.ca, roleNode, "a", now())
				tt.change(t, w, c)
				through, read := offer(t, w, b, c)
				if through != tt.ok {
					t.Fatalf("let through: %v, want %v", through, tt.ok)
				}
				if !tt.ok {
					if len(read) > 0 {
						t.Errorf("the stranger read %q", read)
					}
					if n := b.Refusals()[RefusedTLS]; n != 1 {
						t.Errorf("%d refusals counted, want 1", n)
					}
				}
			})
		})
	}
}

// use puts a new certificate into c.
func use(t *testing.T, c *tls.Config, ca Pair, r role, name string, now time.Time) {
	t.Helper()
	pair, err := issue(ca, r, name, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	c.Certificates = []tls.Certificate{cert}
}

// TestDialRefusesServers: the dialling side judges by the same rules.
func TestDialRefusesServers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server func(t *testing.T, w *world) *tls.Config
		want   error
	}{
		{"the control", func(t *testing.T, w *world) *tls.Config { return w.identity("b").serverConfig() }, nil},
		{"role admin", func(t *testing.T, w *world) *tls.Config {
			c := w.identity("b").serverConfig()
			use(t, c, w.ca, "admin", "b", time.Now())
			return c
		}, ErrWrongRole},
		{"other CA", func(t *testing.T, w *world) *tls.Config {
			c := w.identity("b").serverConfig()
			ca, _ := CreateCA("demo", time.Now())
			use(t, c, ca, roleNode, "b", time.Now())
			return c
		}, ErrUntrusted},
		{"other cluster", func(t *testing.T, w *world) *tls.Config {
			c := w.identity("b").serverConfig()
			use(t, c, recast(t, w.ca, "other"), roleNode, "b", time.Now())
			return c
		}, ErrWrongCluster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a := w.port("a/1", Options{})
				defer mustClose(t, a)
				config := tt.server(t, w)
				ln := w.net.listen("b")
				go func() {
					raw, err := ln.Accept()
					if err != nil {
						return
					}
					c := tls.Server(raw, config)
					_ = c.Handshake()
					_, _ = io.Copy(io.Discard, c)
					_ = raw.Close()
				}()
				c, err := a.DialPeer(t.Context(), "b", "b")
				if tt.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					mustClose(t, c)
				} else if !errors.Is(err, tt.want) {
					t.Fatalf("dial: %v, want %v", err, tt.want)
				}
			})
		})
	}
}

func TestStrangersHearNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		send string
	}{
		{"silence", ""},
		{"SMTP", "EHLO stranger.example\r\n"},
		{"plaintext HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				b := w.port("b/1", Options{})
				defer mustClose(t, b)
				raw, err := w.net.dial(t.Context(), "b")
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				go func() { _, _ = io.WriteString(raw, tt.send) }()
				read, _ := io.ReadAll(raw)
				// Go answers a bad record header with a TLS alert, which names nobody.
				if len(read) > 0 && read[0] != 21 {
					t.Errorf("the stranger read %q", read)
				}
				if waited := time.Since(start); waited > handshakeMax {
					t.Errorf("closed after %v, want at most %v", waited, handshakeMax)
				} else if tt.send == "" && waited < handshakeMax {
					t.Errorf("closed after %v: the deadline is not what closed it", waited)
				}
				mustClose(t, raw)
				synctest.Wait()
				if n := b.Refusals()[RefusedTLS]; n != 1 {
					t.Errorf("%d refusals counted, want 1", n)
				}
			})
		})
	}
}

func TestStalledHandshakesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var log bytes.Buffer
		b := w.port("b/1", Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		var stalled []net.Conn
		for range handshakesPerAddressMax + 10 {
			raw, err := w.net.dial(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			stalled = append(stalled, raw)
		}
		synctest.Wait()
		if n := b.Refusals()[RefusedLimit]; n != 10 {
			t.Fatalf("%d connections refused, want 10", n)
		}
		time.Sleep(handshakeMax + time.Second) // The bubble's clock.
		if n := b.Refusals()[RefusedTLS]; n != handshakesPerAddressMax {
			t.Fatalf("%d handshakes ended by the deadline, want %d", n, handshakesPerAddressMax)
		}
		a := w.port("a/1", Options{})
		grpc := accepted(b.GRPC())
		if _, err := a.DialPeer(t.Context(), "b", "b"); err != nil {
			t.Fatalf("a node is shut out after the stalled handshakes ended: %v", err)
		}
		<-grpc
		mustClose(t, a, b)
		for _, c := range stalled {
			mustClose(t, c)
		}
		b.mu.Lock()
		if len(b.conns) != 0 || b.connections.total != 0 || b.handshakes.total != 0 {
			t.Errorf("after Close: %d connections tracked, %d and %d counted", len(b.conns), b.connections.total, b.handshakes.total)
		}
		b.mu.Unlock()
		if n := strings.Count(log.String(), "refused"); n != 2 {
			t.Errorf("%d log lines for 42 refusals of two kinds, want 2:\n%s", n, log.String())
		}
	})
}

// TestNobodyAccepts: a connection that no listener wants does not stay open.
func TestNobodyAccepts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		defer mustClose(t, a, b)
		c, err := a.DialPeer(t.Context(), "b", "b")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("read something")
		}
		synctest.Wait()
		if n := b.Refusals()[RefusedUnaccepted]; n != 1 {
			t.Errorf("%d refusals counted, want 1", n)
		}
	})
}

func TestClosing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		raft, grpc := accepted(b.Raft()), accepted(b.GRPC())
		r, err := a.Raft().Dial(t.Context(), "b/1", "b")
		if err != nil {
			t.Fatal(err)
		}
		g, err := a.DialPeer(t.Context(), "b", "b")
		if err != nil {
			t.Fatal(err)
		}
		<-raft
		incoming := <-grpc
		mustClose(t, b.Raft())
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Error("the Raft connection is open after Raft's Close")
		}
		if _, err := b.Raft().Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if _, err := b.Raft().Dial(t.Context(), "a/1", "a"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Dial after Close: %v", err)
		}
		go func() { _, _ = g.Write([]byte("x")) }()
		if _, err := incoming.Read(make([]byte, 1)); err != nil {
			t.Errorf("the gRPC connection went down with Raft's: %v", err)
		}
		mustClose(t, b)
		if _, err := g.Read(make([]byte, 1)); err == nil {
			t.Error("the gRPC connection is open after the port's Close")
		}
		if _, err := b.DialPeer(t.Context(), "a", "a"); !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled) {
			t.Errorf("DialPeer after Close: %v", err)
		}
		mustClose(t, a)
	})
}

// brokenWrites is a way on which nothing gets out any more, while nothing says so to who
// reads.
type brokenWrites struct{ net.Conn }

func (brokenWrites) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// A node that could not write took its connection for a good one as long as nothing came
// in: each call of gRPC on it was given to it again and again, without a pause.
func TestRegressionFailedWriteEndsTheReader(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		incoming := accepted(b.GRPC())
		g, err := a.DialPeer(t.Context(), "b", "b")
		if err != nil {
			t.Fatal(err)
		}
		<-incoming
		c := g.(*conn)
		c.raw.Conn = brokenWrites{c.raw.Conn}
		read := make(chan error, 1)
		go func() {
			_, err := g.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		if _, err := g.Write([]byte("x")); err == nil {
			t.Error("a write on a broken way succeeds")
		}
		select {
		case err := <-read:
			if err == nil {
				t.Error("something was read")
			}
		case <-time.After(time.Minute):
			t.Error("who reads is not told that the connection is over")
			_ = g.Close()
			<-read
		}
		mustClose(t, a, b)
	})
}

// TestTCP is the port over a real socket.
func TestTCP(t *testing.T) {
	w := newWorld(t)
	open := func(id ServerID) *Port {
		p, err := Listen("127.0.0.1:0", w.identity(id.Name()), Options{ServerID: id})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mustClose(t, p) })
		return p
	}
	a, b := open("a/1"), open("b/1")
	raft := accepted(b.Raft())
	c, err := a.Raft().Dial(t.Context(), "b/1", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	got := <-raft
	want := bytes.Repeat([]byte("holdfast"), 1<<16)
	go func() { _, _ = c.Write(want) }()
	read := make([]byte, len(want))
	if _, err := io.ReadFull(got, read); err != nil || !bytes.Equal(read, want) {
		t.Fatalf("%d octets do not match, %v", len(read), err)
	}
}
