package clustertest

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// windowBytes is how much a direction holds before its writer has to wait for
// the reader.
const windowBytes = 1 << 20

// A Conn is one end of a connection over a Network.
type Conn struct {
	network       *Network
	local, remote *Host
	here, there   net.Addr
	in, out       *direction
}

var _ net.Conn = (*Conn)(nil)

func newConns(n *Network, a, b *Host, atA, atB net.Addr, random *rand.Rand) (*Conn, *Conn) {
	there, back := newDirection(random), newDirection(random)
	return &Conn{network: n, local: a, remote: b, here: atA, there: atB, in: back, out: there},
		&Conn{network: n, local: b, remote: a, here: atB, there: atA, in: there, out: back}
}

// A direction is the bytes on their way from one end to the other.
type direction struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change but an arrival; nil if nobody waits
	// reading is held by the one Read that waits, if any. Alarm wakes it, at
	// alarmAt where that is set.
	reading chan struct{}
	alarm   *time.Timer
	waits   bool
	alarmAt time.Time
	writers int // who wait for room
	random  *rand.Rand

	segments      []segment
	bytes         int
	total         int   // octets written, those that wait and those that were read
	ended         bool  // the writer has closed: EOF behind the last segment
	broken        error // both ends fail with it
	lost          bool  // a cut or a break took bytes: no more are on their way
	readDeadline  time.Time
	writeDeadline time.Time
}

type segment struct {
	at   time.Time // when it arrives
	data []byte
}

func newDirection(random *rand.Rand) *direction {
	own := rand.New(rand.NewPCG(random.Uint64(), random.Uint64()))
	d := &direction{reading: make(chan struct{}, 1), alarm: time.NewTimer(0), random: own}
	d.alarm.Stop()
	return d
}

// change does something and wakes who waits.
func (d *direction) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	d.wake()
}

// wake ends all waits. The caller holds the lock.
func (d *direction) wake() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// wakeWriters ends the waits if a Write is among them. The caller holds the lock.
func (d *direction) wakeWriters() {
	if d.writers > 0 {
		d.wake()
	}
}

// news returns a channel that ends with the next wake. The caller holds the lock.
func (d *direction) news() <-chan struct{} {
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.changed
}

// by has the Read that waits look again at t, if not before. So one that waits
// when something is sent wakes once, when that has arrived. The caller holds the
// lock.
func (d *direction) by(t time.Time) {
	if d.waits && !t.IsZero() && (d.alarmAt.IsZero() || t.Before(d.alarmAt)) {
		d.alarmAt = t
		d.alarm.Reset(time.Until(t))
	}
}

// await lets a Read wait for a wake or an alarm, which is at arrival at the
// latest, if that is set. The caller holds the lock, and again when await returns.
func (d *direction) await(arrival time.Time) {
	d.waits, d.alarmAt = true, time.Time{}
	d.by(d.readDeadline)
	d.by(arrival)
	changed := d.news()
	d.mu.Unlock()
	select {
	case <-changed:
	case <-d.alarm.C:
	}
	d.mu.Lock()
	d.waits = false
	d.alarm.Stop()
}

// awaitRoom lets a Write wait until something changes, or its deadline. The
// caller holds the lock, and again when awaitRoom returns.
func (d *direction) awaitRoom() {
	changed, deadline := d.news(), d.writeDeadline
	d.writers++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.writers--
	}()
	if deadline.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Read reads what has arrived.
func (c *Conn) Read(p []byte) (int, error) {
	d := c.in
	d.reading <- struct{}{}
	defer func() { <-d.reading }()
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		switch {
		case d.broken != nil:
			return 0, d.broken
		case passed(d.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case len(d.segments) > 0 && !c.arrival().After(time.Now()):
			n := copy(p, d.segments[0].data)
			if n == len(d.segments[0].data) {
				d.segments = d.segments[1:]
			} else {
				d.segments[0].data = d.segments[0].data[n:]
			}
			d.bytes -= n
			d.wakeWriters()
			return n, nil
		case len(d.segments) == 0 && d.ended && !d.lost:
			return 0, io.EOF
		}
		d.await(c.arrival())
	}
}

// arrival returns when the next octets can be read here, zero where none are on
// their way. The caller holds the lock of c.in.
func (c *Conn) arrival() time.Time {
	if len(c.in.segments) == 0 {
		return time.Time{}
	}
	return later(c.in.segments[0].at, c.network.Frozen(c.local.name))
}

// Write sends a copy of p. It waits only while the window is full.
func (c *Conn) Write(p []byte) (int, error) {
	d := c.out
	sent := 0
	for len(p) > 0 {
		cut := c.network.isCut(c.local.name, c.remote.name)
		fuse := c.network.fuse(c.local.name, c.remote.name)
		d.mu.Lock()
		delay := c.network.delay(d.random)
		switch {
		case d.broken != nil:
			err := d.broken
			d.mu.Unlock()
			return sent, err
		case d.ended:
			d.mu.Unlock()
			return sent, net.ErrClosed
		case passed(d.writeDeadline):
			d.mu.Unlock()
			return sent, os.ErrDeadlineExceeded
		case cut && !d.lost:
			d.lost = true
			time.AfterFunc(blackHoleTime, func() { c.breakWith(errReset) })
			fallthrough
		case d.lost:
			d.mu.Unlock()
			return sent + len(p), nil
		case d.bytes < windowBytes:
			n := min(len(p), windowBytes-d.bytes)
			breaks := fuse > 0 && d.total+n > fuse
			if breaks {
				n = max(0, fuse-d.total)
			}
			at := later(time.Now(), c.network.Frozen(c.local.name)).Add(delay)
			if last := len(d.segments) - 1; last >= 0 && d.segments[last].at.After(at) {
				at = d.segments[last].at
			}
			if n > 0 {
				d.segments = append(d.segments, segment{at, append([]byte(nil), p[:n]...)})
			}
			d.bytes += n
			d.total += n
			p = p[n:]
			sent += n
			if breaks { // once the reader had the time to take what came before
				d.lost = true
				time.AfterFunc(time.Until(at)+time.Millisecond, func() { c.breakWith(errReset) })
			}
			d.by(at)
			d.mu.Unlock()
		default:
			d.awaitRoom()
			d.mu.Unlock()
		}
	}
	return sent, nil
}

// Close closes this end. The other reads what was sent, then EOF.
func (c *Conn) Close() error {
	c.forget()
	cut := c.network.isCut(c.local.name, c.remote.name)
	c.out.change(func() {
		c.out.ended = true
		if cut {
			c.out.lost = true
		}
	})
	c.in.change(func() {
		if c.in.broken == nil {
			c.in.broken = net.ErrClosed
		}
	})
	if cut {
		time.AfterFunc(blackHoleTime, func() { c.breakWith(errReset) })
	}
	return nil
}

// CloseWrite closes the direction away from here.
func (c *Conn) CloseWrite() error {
	c.out.change(func() { c.out.ended = true })
	return nil
}

// Arrived returns how many octets have arrived here and were not read yet.
func (c *Conn) Arrived() int {
	d := c.in
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, s := range d.segments {
		if s.at.After(time.Now()) {
			break
		}
		n += len(s.data)
	}
	return n
}

// breakWith makes both ends fail.
func (c *Conn) breakWith(err error) {
	c.forget()
	for _, d := range []*direction{c.in, c.out} {
		d.change(func() {
			if d.broken == nil {
				d.broken = err
			}
		})
	}
}

func (c *Conn) forget() {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	delete(c.local.conns, c)
}

// LocalAddr returns the address of this end, a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return c.here }

// RemoteAddr returns the address of the other end, a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.there }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets when Read gives up; zero is never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	d := c.in
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readDeadline = t
	d.by(t) // a later one than before is noticed when the earlier one passes
	return nil
}

// SetWriteDeadline sets when Write gives up; zero is never.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	d := c.out
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writeDeadline = t
	d.wakeWriters()
	return nil
}
