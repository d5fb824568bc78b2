package gate

import (
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// pass writes a reply of go-smtp, which is the session's, as it is.
func (c *Conn) pass(code int, lines []replyLine) error {
	for _, l := range lines {
		c.out = append(c.out, l.raw...)
	}
	return c.said(code)
}

// say writes a reply of our own.
func (c *Conn) say(r mail.Reply) error {
	c.out = fmt.Appendf(c.out, "%s\r\n", r)
	return c.said(r.Code)
}

func (c *Conn) said(code int) error {
	if code/100 == 5 {
		c.errors++
	}
	if code == 421 { // RFC 5321 section 3.8: 421 goes with a close.
		return c.closeLingering()
	}
	if len(c.out) > outputBytesMax {
		return c.flush()
	}
	return nil
}

// sayLast writes a reply and closes. It always returns an error, for go-smtp.
func (c *Conn) sayLast(r mail.Reply) error {
	c.out = fmt.Appendf(c.out, "%s\r\n", r)
	return c.closeLingering()
}

// closeLingering flushes and closes. The client may be sending still, and a
// close with its octets unread would reset the connection and take the reply
// with it; so they are read for a moment.
func (c *Conn) closeLingering() error {
	if c.flush() == nil {
		if half, ok := c.wire.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			c.mu.Lock()
			if !c.dead {
				_ = c.wire.SetReadDeadline(time.Now().Add(lingerTime))
			}
			c.mu.Unlock()
			_, _ = io.CopyN(io.Discard, c.wire.Conn, lingerBytesMax)
		}
	}
	c.die()
	return net.ErrClosed
}

// flush writes what is held back.
func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if c.isDead() {
		return net.ErrClosed
	}
	out := c.out
	c.out = c.out[:0]
	_ = c.wire.SetWriteDeadline(time.Now().Add(c.gate.limits.WriteTimeout))
	if _, err := c.stream.Write(out); err != nil {
		c.die()
		return net.ErrClosed
	}
	return nil
}
