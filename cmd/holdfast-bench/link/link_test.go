package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const roundTrip = 50 * time.Millisecond

// pipes joins two ends by a link, without a network: in a bubble, time is what the
// link makes of it. The returned time is when the server got to know.
func pipes(t *testing.T) (client, server net.Conn, opened time.Time) {
	t.Helper()
	client, near := net.Pipe()
	far, server := net.Pipe()
	dialed := make(chan time.Time, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var joined sync.WaitGroup
	joined.Go(func() {
		join(ctx, near, Options{RoundTrip: roundTrip, Dial: func(context.Context) (net.Conn, error) {
			dialed <- time.Now()
			return far, nil
		}})
	})
	t.Cleanup(func() {
		cancel()
		joined.Wait()
		client.Close()
		server.Close()
	})
	return client, server, <-dialed
}

// TestRoundTrip: a server that speaks first is heard two round trips after the
// connect, an answer comes a round trip after what it answers, and so does the end.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		client, server, opened := pipes(t)
		if after := opened.Sub(begin); after != roundTrip*3/2 {
			t.Errorf("the server got to know after %v", after)
		}
		hear := func(who string, c net.Conn, want string, at time.Duration) {
			t.Helper()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("%s heard %q, %v, want %q", who, got, err, want)
			}
			if after := time.Since(begin); after != at {
				t.Errorf("%s heard %q after %v, want %v", who, want, after, at)
			}
		}
		say := func(c net.Conn, text string) {
			t.Helper()
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
		}
		say(server, "banner")
		hear("the client", client, "banner", 2*roundTrip)
		say(client, "ehlo")
		hear("the server", server, "ehlo", 2*roundTrip+roundTrip/2)
		say(server, "250")
		hear("the client", client, "250", 3*roundTrip)
		client.Close()
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("behind the end came %d octets, %v", n, err)
		}
		if after := time.Since(begin); after != 3*roundTrip+roundTrip/2 {
			t.Errorf("the end came after %v", after)
		}
	})
}

// TestOrder: what is said in many pieces, with pauses and without, comes in the
// same order, each octet half a round trip after it was said.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := pipes(t)
		random := rand.New(rand.NewPCG(1, 1))
		type piece struct {
			octets []byte
			said   time.Time
		}
		pieces := make([]piece, 300)
		var saying sync.WaitGroup
		saying.Go(func() {
			for i := range pieces {
				time.Sleep(time.Duration(random.IntN(3)) * time.Duration(random.IntN(int(roundTrip))))
				octets := make([]byte, 1+random.IntN(chunkBytes))
				for k := range octets {
					octets[k] = byte(random.Uint32())
				}
				pieces[i] = piece{octets, time.Now()}
				if _, err := client.Write(octets); err != nil {
					t.Error(err)
				}
			}
		})
		got := make([]byte, chunkBytes)
		for i := range pieces {
			n, err := server.Read(got)
			if err != nil || !bytes.Equal(got[:n], pieces[i].octets) {
				t.Fatalf("piece %d: %d octets, %v, and %d were said", i, n, err, len(pieces[i].octets))
			}
			if took := time.Since(pieces[i].said); took != roundTrip/2 {
				t.Errorf("piece %d took %v", i, took)
			}
		}
		saying.Wait()
	})
}

// TestBound: a sender to whom nobody listens is held up, and the link holds no
// more than it says.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := pipes(t)
		said := 0
		var saying sync.WaitGroup
		saying.Go(func() {
			for {
				if _, err := client.Write(make([]byte, chunkBytes)); err != nil {
					return
				}
				said++
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		// One more is with who reads, and one with who writes.
		if said < chunksMax || said > chunksMax+2 {
			t.Errorf("the link took %d pieces", said)
		}
		client.Close()
		saying.Wait()
	})
}

// network is a link between real connections, to a server that does as serve does.
func network(t *testing.T, dial func(context.Context) (net.Conn, error)) (address string, end func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, Options{RoundTrip: time.Millisecond, Dial: dial}) }()
	return l.Addr().String(), func() error {
		cancel()
		return <-served
	}
}

// TestHalves: one direction may end before the other, and nothing is lost on the
// way, however much it is.
func TestHalves(t *testing.T) {
	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	address, end := network(t, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", back.Addr().String())
	})
	said := make([]byte, 5<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(said)
	go func() { // the server says all again once the client has ended
		c, err := back.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		heard, _ := io.ReadAll(c)
		c.Write(heard)
	}()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(said); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if heard, err := io.ReadAll(c); err != nil || !bytes.Equal(heard, said) {
		t.Errorf("%d of %d octets came back, or others; %v", len(heard), len(said), err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestNoServer: the client of a server that is not there is told by the end of its
// connection, and the link goes on until it is ended, and then no goroutine is left.
func TestNoServer(t *testing.T) {
	address, end := network(t, func(context.Context) (net.Conn, error) { return nil, errors.New("refused") })
	for range 2 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d octets, %v", n, err)
		}
		c.Close()
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("it listens on after its end")
	}
}

// TestEnd: the end of a link ends the connections on it.
func TestEnd(t *testing.T) {
	far, server := net.Pipe()
	defer server.Close()
	address, end := network(t, func(context.Context) (net.Conn, error) { return far, nil })
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the client's connection lives on")
	}
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("the server's connection lives on")
	}
}

// TestBrokenListener: a listener that fails by itself is an error.
func TestBrokenListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, Options{}); err == nil {
		t.Error("no error")
	}
}
