package clustertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

// pair connects a to b.
func pair(t *testing.T, n *Network) (client, server net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(25)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = n.Host("a").Dial(context.Background(), "b:25"); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestBytesArriveInOrderAndLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, 10*time.Millisecond, 20*time.Millisecond)
		client, server := pair(t, n)
		defer server.Close()
		began := time.Now()
		sent := bytes.Repeat([]byte("0123456789"), 500_000) // more than the window
		var g errgroup.Group
		g.Go(func() error {
			defer client.Close()
			_, err := client.Write(sent)
			return err
		})
		got, err := io.ReadAll(server)
		if err != nil || !bytes.Equal(got, sent) || g.Wait() != nil {
			t.Errorf("read %d octets of %d, %v", len(got), len(sent), err)
		}
		if took := time.Since(began); took < 10*time.Millisecond {
			t.Errorf("arrived after %v", took)
		}
		if n.NameOf(server.RemoteAddr()) != "a" || n.NameOf(client.RemoteAddr()) != "b" || client.LocalAddr().String() != server.RemoteAddr().String() {
			t.Errorf("addresses %v, %v", client.LocalAddr(), server.RemoteAddr())
		}
	})
}

func TestWriteDoesNotWaitForAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, NewNetwork(1, 0, 0))
		defer server.Close()
		if _, err := client.Write(make([]byte, windowBytes)); err != nil {
			t.Error(err)
		}
		_ = client.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := client.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a full window: %d, %v", n, err)
		}
		_ = client.Close()
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, NewNetwork(1, 0, 0))
		defer server.Close()
		defer client.Close()
		began := time.Now()
		_ = client.SetDeadline(began.Add(time.Minute))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("read: %v after %v", err, time.Since(began))
		}
		var timeout net.Error
		if _, err := client.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read again: %v", err)
		}
		// A deadline moved while a read waits.
		_ = client.SetDeadline(time.Time{})
		go func() {
			time.Sleep(time.Second)
			_ = client.SetReadDeadline(time.Now())
		}()
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
}

// TestCut: what is written into a cut is lost for good, the connection breaks
// later, the other direction goes on until then, and an idle connection lives.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, 0, 0)
		client, server := pair(t, n)
		idle, idleServer := pair(t, n)
		n.CutOneWay("a", "b")
		if n.Reachable("a", "b") || n.Reachable("b", "a") {
			t.Error("reachable")
		}
		began := time.Now()
		if _, err := client.Write([]byte("lost")); err != nil {
			t.Errorf("write into the cut: %v", err)
		}
		n.Heal("a", "b")
		if _, err := client.Write([]byte("lost too")); err != nil {
			t.Errorf("write after the cut: %v", err)
		}
		if _, err := server.Write([]byte("back")); err != nil {
			t.Errorf("write back: %v", err)
		}
		b := make([]byte, 10)
		if got, err := client.Read(b); string(b[:got]) != "back" || err != nil {
			t.Errorf("read %q, %v", b[:got], err)
		}
		if got, err := server.Read(b); got != 0 || !errors.Is(err, errReset) || time.Since(began) != blackHoleTime {
			t.Errorf("read %d octets, %v after %v", got, err, time.Since(began))
		}
		if _, err := client.Write(b); !errors.Is(err, errReset) {
			t.Errorf("write on a broken connection: %v", err)
		}
		if _, err := idle.Write([]byte("alive")); err != nil {
			t.Error(err)
		}
		if got, err := idleServer.Read(b); string(b[:got]) != "alive" || err != nil {
			t.Errorf("read %q, %v", b[:got], err)
		}
		_, _ = idle.Close(), idleServer.Close()
	})
}

// TestBreakAfter: so many octets arrive and no more, the other way and other
// connections go on, and one that has carried more breaks when it is written to.
func TestBreakAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, time.Millisecond, 20*time.Millisecond)
		old, oldServer := pair(t, n)
		read := func(c net.Conn) (string, error) {
			got, err := io.ReadAll(c)
			return string(got), err
		}
		if _, err := old.Write([]byte("carried before")); err != nil {
			t.Fatal(err)
		}
		n.BreakAfter("a", "b", 5)
		client, server := pair(t, n)
		if _, err := server.Write([]byte("the other way")); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"ab", "cdef", "g"} {
			if _, err := client.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := read(server); got != "abcde" || !errors.Is(err, errReset) {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := client.Write([]byte("h")); !errors.Is(err, errReset) {
			t.Errorf("write on a broken connection: %v", err)
		}
		if _, err := old.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		if got, err := read(oldServer); got != "carried before" || !errors.Is(err, errReset) {
			t.Errorf("read %q, %v", got, err)
		}
		n.HealAll()
		client, server = pair(t, n)
		if _, err := client.Write([]byte("longer than five")); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		if got, err := read(server); got != "longer than five" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		_ = server.Close()
	})
}

func TestDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, 0, 0)
		a, ctx := n.Host("a"), context.Background()
		b := n.Host("b")
		if _, err := a.Dial(ctx, "b:25"); !errors.Is(err, errRefused) {
			t.Errorf("nobody listens: %v", err)
		}
		if _, err := a.Dial(ctx, "nobody:25"); err == nil {
			t.Error("dialled nobody")
		}
		l, err := b.Listen(25)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listen(25); err == nil {
			t.Error("two listen on one port")
		}
		c, err := a.Dial(ctx, net.JoinHostPort(b.IP().String(), "25"))
		if err != nil {
			t.Errorf("by address: %v", err)
		}
		began := time.Now()
		n.Cut("a", "b")
		if _, err := a.Dial(ctx, "b:25"); !errors.Is(err, errUnreach) || time.Since(began) != dialTimeout {
			t.Errorf("into a cut: %v after %v", err, time.Since(began))
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := a.Dial(ended, "b:25"); !errors.Is(err, context.Canceled) {
			t.Errorf("ended: %v", err)
		}
		n.HealAll()
		// A killed host breaks what it had, and can listen again.
		n.Kill("b")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Errorf("read from a dead host: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept on a dead host: %v", err)
		}
		if l, err = b.Listen(25); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	})
}

func TestPartition(t *testing.T) {
	n := NewNetwork(1, 0, 0)
	n.Cut("a", "b")
	n.Partition([]string{"a", "b"}, []string{"c", "d"})
	for _, test := range []struct {
		a, b string
		want bool
	}{{"a", "b", true}, {"c", "d", true}, {"a", "c", false}, {"d", "b", false}} {
		if got := n.Reachable(test.a, test.b); got != test.want {
			t.Errorf("%s to %s: %v", test.a, test.b, got)
		}
	}
}

// A host that is frozen neither hears nor is heard, nothing of it is lost, and a
// deadline that passes meanwhile has passed.
func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, time.Millisecond, time.Millisecond)
		client, server := pair(t, n)
		defer client.Close()
		defer server.Close()
		began := time.Now()
		if _, err := client.Write([]byte("on its way")); err != nil {
			t.Fatal(err)
		}
		n.Freeze("b", began.Add(time.Minute))
		got := make([]byte, 10)
		server.SetReadDeadline(began.Add(time.Second))
		if _, err := server.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read by a frozen host: %v", err)
		}
		server.SetReadDeadline(time.Time{})
		if _, err := server.Write([]byte("from here!")); err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{server, client} {
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			if after := time.Since(began); after < time.Minute || after > time.Minute+time.Second {
				t.Errorf("%q arrived after %s", got, after)
			}
		}
		n.Freeze("a", time.Now().Add(time.Minute))
		began = time.Now()
		if _, err := n.Host("b").Dial(t.Context(), "a:1"); err == nil || time.Since(began) < time.Minute {
			t.Errorf("a frozen host answers after %s: %v", time.Since(began), err)
		}
	})
}
