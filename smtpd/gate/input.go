package gate

import (
	"errors"
	"io"
	"net"
	"time"
)

// fill reads once from the network, after a flush. It returns errDraining when
// a drain ends the connection here, os.ErrDeadlineExceeded (as a net.Error),
// or the error of the connection.
func (c *Conn) fill(deadline time.Time) error {
	if err := c.flush(); err != nil {
		return err
	}
	c.makeRoom()
	c.mu.Lock()
	switch {
	case c.dead:
		c.mu.Unlock()
		return net.ErrClosed
	case c.leaves():
		c.mu.Unlock()
		return errDraining
	}
	_ = c.wire.SetReadDeadline(deadline)
	c.mu.Unlock()
	before, at := c.wire.taken, c.w
	n, err := c.stream.Read(c.in[c.w:])
	if n > 0 {
		c.olderP = c.position(c.r)
		c.chunk, c.chunkP = at, before
		if c.tls != nil {
			c.chunkP = c.wire.recordStart
		}
		c.w += n
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if isTimeout(err) && c.mustLeave() {
		return errDraining
	}
	return err
}

// makeRoom makes sure that in has room behind w.
func (c *Conn) makeRoom() {
	if c.r == c.w {
		c.r, c.w, c.chunk = 0, 0, 0
		if c.large != nil && c.phase == phaseCommand {
			c.gate.buffers.Put(c.large)
			c.large, c.in = nil, c.small[:]
		}
		return
	}
	if c.r > 0 {
		copy(c.in, c.in[c.r:c.w])
		if c.r > c.chunk {
			c.chunkP = c.position(c.r)
		}
		c.chunk = max(c.chunk-c.r, 0)
		c.w -= c.r
		c.r = 0
	}
}

// enlarge takes a large input buffer, for a body.
func (c *Conn) enlarge() {
	if c.large != nil {
		return
	}
	c.large = c.gate.buffers.Get().(*[bodyInputBytes]byte)
	copy(c.large[:], c.in[:c.w])
	c.in = c.large[:]
}

// position returns where on the wire the octet in[i] came from; under TLS,
// where the record that brought it began; and of octets older than the last
// read, where the oldest of them came from.
func (c *Conn) position(i int) int64 {
	switch {
	case i < c.chunk:
		return c.olderP
	case c.tls != nil:
		return c.chunkP
	}
	return c.chunkP + int64(i-c.chunk)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
