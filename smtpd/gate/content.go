package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

var (
	// ErrLineTooLong: a line of the body is longer than Limits.BodyLineMax. The
	// rest of the message is discarded when the session replies.
	ErrLineTooLong = errors.New("line of the body too long")
	// ErrNoContent: no message is being received.
	ErrNoContent = errors.New("no message is being received")
)

var crlf = []byte("\r\n")

// NextBody returns the next octets of the message, at most BodyRunMax: dots
// taken off, line ends normalised. They are valid until the next call. The
// first call sends the reply 354, so a session that replies without calling it
// refuses the message before it is sent.
//
// After the end mark the error is io.EOF, and only then is the message
// complete. Any other error says that it never will be: ErrLineTooLong, after
// which a reply can still be given, or that of a connection that is closed
// already.
func (c *Conn) NextBody() (p []byte, err error) {
	defer c.contain(&err)
	if c.phase != phaseContent {
		return nil, ErrNoContent
	}
	if c.held {
		c.held = false
		if err := c.say(replyGoAhead); err != nil {
			return nil, err
		}
		// At once, so that nothing is left to be written behind the final dot.
		if err := c.flush(); err != nil {
			return nil, err
		}
		c.enlarge()
	}
	return c.nextPiece()
}

func (c *Conn) nextPiece() ([]byte, error) {
	for {
		switch {
		case c.broken != nil:
			return nil, c.broken
		case c.lf:
			c.lf = false
			return crlf, nil
		case c.ended:
			return nil, io.EOF
		}
		piece, used, lf, end := c.lines.next(c.in[c.r:c.w])
		c.r += used
		c.lf, c.ended = lf, end
		if c.lines.tooLong {
			c.broken = ErrLineTooLong
		} else if len(piece) > 0 {
			return piece, nil
		}
		if used == 0 {
			if err := c.fillContent(); err != nil {
				c.broken = err
			}
		}
	}
}

// fillContent reads more of the body, not slower than DataRateMin.
func (c *Conn) fillContent() error {
	l := &c.gate.limits
	for {
		begin := time.Now()
		wait := min(l.DataTimeout, l.DataRateWindow-c.waited)
		had := c.w - c.r
		err := c.fill(begin.Add(wait))
		c.waited += time.Since(begin)
		if err == nil {
			c.received += c.w - c.r - had
		}
		if c.waited >= l.DataRateWindow {
			if c.received < int(l.DataRateWindow.Seconds()*float64(l.DataRateMin)) {
				c.gate.stats.Timeouts.Add(1)
				return c.sayLast(c.named(replySlow))
			}
			c.waited, c.received = 0, 0
			if isTimeout(err) && wait < l.DataTimeout {
				continue // The window ended, not the sender's time.
			}
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errDraining):
			return c.sayLast(c.named(replyDraining))
		case isTimeout(err):
			c.gate.stats.Timeouts.Add(1)
			return c.sayLast(c.named(replyTimeout))
		}
		c.gate.stats.Aborted.Add(1)
		c.die()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read message: %w", err)
	}
}

// endContent is called when go-smtp wants the end of the message: the session
// has made up its mind. It gives go-smtp the end mark, after whatever is left
// of the message.
func (c *Conn) endContent() error {
	if c.held { // Refused before it was asked for: the reply takes the 354's place.
		c.held = false
	} else if !c.ended {
		if err := c.discardContent(); err != nil {
			return net.ErrClosed
		}
	}
	c.phase = phaseOutcome
	c.feed = []byte(endMark)
	return nil
}

// discardContent reads the rest of a message that was refused. If it is too
// much, the connection is cut after the reply.
func (c *Conn) discardContent() error {
	if errors.Is(c.broken, ErrLineTooLong) {
		c.broken = nil
	}
	c.lines.lineMax = int(^uint(0) >> 1)
	c.lines.tooLong = false
	left := int64(c.gate.limits.DiscardMax)
	for {
		piece, err := c.nextPiece()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if left -= int64(len(piece)); left < 0 {
			c.cut = true
			return nil
		}
	}
}
