package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// A tape is a connection that keeps what is written and gives it back in pieces.
type tape struct {
	net.Conn
	mu     sync.Mutex
	data   []byte
	writes int
	left   int // octets that go through before a write fails; negative: all
	pieces *rand.Rand
}

func (c *tape) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.left >= 0 && len(p) > c.left {
		n := c.left
		c.data, c.left = append(c.data, p[:n]...), -1
		return n, os.ErrDeadlineExceeded
	}
	c.data = append(c.data, p...)
	if c.left >= 0 {
		c.left -= len(p)
	}
	return len(p), nil
}

func (c *tape) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:min(len(c.data), 1+c.pieces.IntN(wireReadBytes+2))])
	c.data = c.data[n:]
	return n, nil
}

// TestWireCarriesWhatWasWritten in whatever sizes it is written and read, held
// back or not.
func TestWireCarriesWhatWasWritten(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	octets := rand.NewChaCha8([32]byte{3})
	for range 12 {
		under := &tape{left: -1, pieces: random}
		w := &wire{Conn: under}
		var want []byte
		for range 1 + random.IntN(12) {
			held := random.IntN(3) > 0
			if held {
				w.hold()
			}
			before := under.writes
			records, written := random.IntN(20), 0
			for range records {
				p := make([]byte, random.IntN(17<<10))
				_, _ = octets.Read(p) // Never fails.
				if n, err := w.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				want, written = append(want, p...), written+len(p)
			}
			if len(w.out) > wireWriteBytes {
				t.Errorf("%d octets held back", len(w.out))
			}
			if held {
				if err := w.release(); err != nil {
					t.Fatal(err)
				}
				if got, limit := under.writes-before, 1+written/wireWriteBytes; got > limit {
					t.Errorf("%d octets in %d writes", written, got)
				}
			}
		}
		var got []byte
		for {
			p := make([]byte, 1+random.IntN(2*wireReadBytes))
			n, err := w.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d octets read, %d written, or not the same", len(got), len(want))
		}
	}
}

// TestWireFailsForGood: behind a write that failed, part of a record may be
// missing, so nothing may follow it, and every writer hears of it.
func TestWireFailsForGood(t *testing.T) {
	for _, held := range []bool{false, true} {
		for _, left := range []int{0, 5, 40 << 10} {
			under := &tape{left: left}
			w := &wire{Conn: under}
			var failed error
			for range 40 {
				if held {
					w.hold()
				}
				_, failed = w.Write(make([]byte, 16<<10))
				if held {
					if err := w.release(); failed == nil {
						failed = err
					}
				}
				if failed != nil {
					break
				}
			}
			if !errors.Is(failed, os.ErrDeadlineExceeded) {
				t.Fatalf("held=%v: %v", held, failed)
			}
			there := len(under.data)
			if _, err := w.Write([]byte("more")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("held=%v: written behind a failure: %v", held, err)
			}
			w.hold()
			_, err := w.Write([]byte("more"))
			if released := w.release(); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(released, os.ErrDeadlineExceeded) {
				t.Errorf("held=%v: held back behind a failure: %v, %v", held, err, released)
			}
			if len(under.data) != there {
				t.Errorf("held=%v: %d octets behind a failure", held, len(under.data)-there)
			}
		}
	}
}

// TestWritesOfManyArriveWhole: each Write is one piece, whoever else writes, in
// both directions at once.
func TestWritesOfManyArriveWhole(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		defer mustClose(t, a, b)
		incoming := accepted(b.GRPC())
		here, err := a.DialPeer(t.Context(), "b", "b")
		if err != nil {
			t.Fatal(err)
		}
		there := <-incoming
		const writers, pieces = 5, 12
		var all sync.WaitGroup
		for _, direction := range [][2]net.Conn{{here, there}, {there, here}} {
			to, from := direction[0], direction[1]
			for writer := range writers {
				random := rand.New(rand.NewPCG(uint64(writer), 5))
				all.Go(func() {
					for piece := range pieces {
						p := make([]byte, 8+random.IntN(120<<10))
						binary.BigEndian.PutUint32(p, uint32(len(p)))
						p[4], p[5] = byte(writer), byte(piece)
						for i := 8; i < len(p); i++ {
							p[i] = byte(writer*31 + piece*7 + i)
						}
						if n, err := to.Write(p); n != len(p) || err != nil {
							t.Errorf("write: %d, %v", n, err)
						}
					}
				})
			}
			all.Go(func() {
				next := make([]byte, writers)
				for range writers * pieces {
					head := make([]byte, 8)
					if _, err := io.ReadFull(from, head); err != nil {
						t.Error(err)
						return
					}
					rest := make([]byte, binary.BigEndian.Uint32(head)-8)
					if _, err := io.ReadFull(from, rest); err != nil {
						t.Error(err)
						return
					}
					writer, piece := int(head[4]), int(head[5])
					if int(next[writer]) != piece {
						t.Errorf("piece %d of writer %d, want %d", piece, writer, next[writer])
						return
					}
					next[writer]++
					for i, c := range rest {
						if c != byte(writer*31+piece*7+i+8) {
							t.Errorf("piece %d of writer %d differs at %d", piece, writer, i)
							return
						}
					}
				}
			})
		}
		all.Wait()
		_ = here.Close()
		_ = there.Close()
	})
}

// TestWriteToAPeerThatHangs ends at its deadline, or when the connection is
// closed, and every later one fails as well.
func TestWriteToAPeerThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.port("a/1", Options{}), w.port("b/1", Options{})
		defer mustClose(t, a, b)
		for _, ends := range []string{"deadline", "close"} {
			incoming := accepted(b.GRPC())
			c, err := a.DialPeer(t.Context(), "b", "b")
			if err != nil {
				t.Fatal(err)
			}
			there := <-incoming
			if ends == "deadline" {
				_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			} else {
				time.AfterFunc(time.Second, func() { _ = c.Close() })
			}
			if n, err := c.Write(make([]byte, 100<<10)); err == nil {
				t.Errorf("%s: %d octets went to a peer that reads nothing", ends, n)
			}
			_ = c.SetWriteDeadline(time.Time{})
			if _, err := c.Write([]byte("more")); err == nil {
				t.Errorf("%s: a write went through behind one that failed", ends)
			}
			_ = c.Close()
			_ = there.Close()
		}
	})
}
