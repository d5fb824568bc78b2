package gate

import (
	"bytes"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// lineEnds turns the octets of a DATA command into those of the message: it
// finds the end mark, takes the dot of RFC 5321 section 4.5.2 off, and
// normalises stray CR and LF. It works on whole blocks and returns pieces of
// them; only a stray CR is overwritten, in place.
//
// A line begins after CRLF (or is the first). A dot there is either the end
// mark, when CRLF follows, or transparency, and is dropped. A dot after a stray
// LF is text: RFC 5321 section 2.3.8 knows no such line end, a sender that keeps
// to it stuffed no dot there, and above all the end mark is not there.
type lineEnds struct {
	lineMax int

	inLine  bool // the line has begun: a dot is text
	lineLen int  // octets of it so far
	tooLong bool // a line was longer than lineMax

	controls controls.Set
}

// next works on b, which begins where the last call stopped. It returns a
// piece of the message (a part of b) with the number of octets of b that are
// done with; lf says that CRLF follows the piece, in place of a stray LF; end
// that the end mark was read. When used is 0, more octets are needed.
func (s *lineEnds) next(b []byte) (piece []byte, used int, lf, end bool) {
	begin := 0
	if !s.inLine && len(b) > 0 && b[0] == '.' {
		switch {
		case len(b) < 3 && (len(b) == 1 || b[1] == '\r'):
			return nil, 0, false, false
		case b[1] == '\r' && b[2] == '\n':
			return nil, 3, false, true
		}
		begin = 1
		s.inLine = true
	}
	i := begin
	for i < len(b) {
		if !s.inLine && b[i] == '.' {
			return b[begin:i], i, false, false
		}
		nl := bytes.IndexByte(b[i:], '\n')
		if nl < 0 {
			text := b[i:]
			// Of a CR in the last place it is not known whether it is stray.
			if text[len(text)-1] == '\r' {
				text = text[:len(text)-1]
			}
			if len(text) > 0 {
				s.inLine = true
				s.text(text)
				i += len(text)
			}
			break
		}
		text := b[i : i+nl]
		if nl == 0 || text[nl-1] != '\r' {
			s.text(text)
			s.inLine, s.lineLen = true, 0
			return b[begin : i+nl], i + nl + 1, true, false
		}
		s.text(text[:nl-1])
		s.inLine, s.lineLen = false, 0
		i += nl + 1
	}
	return b[begin:i], i, false, false
}

// text counts octets of a line and replaces stray CRs among them.
func (s *lineEnds) text(t []byte) {
	s.lineLen += len(t)
	if s.lineLen > s.lineMax {
		s.tooLong = true
	}
	for {
		cr := bytes.IndexByte(t, '\r')
		if cr < 0 {
			return
		}
		if !s.controls.Has(controls.StrayCRPassed) {
			t[cr] = ' '
		}
		t = t[cr+1:]
	}
}
