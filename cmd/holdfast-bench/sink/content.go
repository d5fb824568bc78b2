package sink

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// content is what was read of one message.
type content struct {
	cutter *ledger.Cutter
	size   int64
	broken error  // the content broke a rule; it was read to its end
	octets []byte // kept for Inspect and Message
	whole  bool   // octets is all of it
}

// content reads up to CRLF.CRLF and takes the dots off (RFC 5321 section
// 4.5.2). An error means that the end was not seen.
func (s *session) content() (content, error) {
	c := content{cutter: new(ledger.Cutter), whole: s.srv.o.Inspect != nil || s.srv.o.Message != nil}
	begins := true    // the piece is the beginning of a line
	afterCRLF := true // and of one that follows a CRLF, not a bare LF
	endsCR := false   // the piece before ended in CR, and its LF is still to come
	drawn := false    // the fault at Body was drawn
	for {
		piece, err := s.in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return c, err
		}
		if !drawn {
			drawn = true
			if err := s.fault(Body); err != nil {
				return c, err
			}
		}
		ends := err == nil
		if afterCRLF && ends && string(piece) == ".\r\n" {
			return c, nil
		}
		if strayed(piece, ends, endsCR) {
			c.broken = errLineEnding
		}
		dot := afterCRLF && piece[0] == '.'
		afterCRLF = ends && (bytes.HasSuffix(piece, []byte("\r\n")) || (endsCR && len(piece) == 1))
		endsCR = !ends && piece[len(piece)-1] == '\r'
		if dot {
			piece = piece[1:]
		}
		c.take(piece, begins)
		begins = ends
	}
}

func (c *content) take(piece []byte, begins bool) {
	c.size += int64(len(piece))
	c.cutter.Line(piece, begins)
	if !c.whole {
		return
	}
	if len(c.octets)+len(piece) > inspectMax {
		c.octets, c.whole = nil, false
		return
	}
	c.octets = append(c.octets, piece...)
}

// strayed reports whether a piece of a line has a CR or LF that is not part of
// CRLF. ends: the piece ends in LF; afterCR: the piece before ended in CR.
func strayed(piece []byte, ends, afterCR bool) bool {
	if afterCR {
		return !(ends && len(piece) == 1)
	}
	cr := bytes.IndexByte(piece, '\r')
	if ends {
		return cr < 0 || cr != len(piece)-2
	}
	return cr >= 0 && cr != len(piece)-1
}
