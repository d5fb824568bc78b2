package smtpclient

import (
	"bufio"
	"bytes"
	"fmt"
)

// A stuffer writes content as RFC 5321 section 4.5.2 wants it: a dot at the
// beginning of a line is doubled. It refuses a CR without LF and an LF without
// CR before the line that has it is written: what one server takes for a line
// end and another does not is how a second message is smuggled into a body.
//
// The zero value is at the beginning of a line.
type stuffer struct {
	midLine bool // the last octet written was not the LF of a CRLF
	afterCR bool // the last octet written was a CR
}

var (
	dot  = []byte(".")
	crlf = []byte("\r\n")
)

// write stuffs p, which may begin and end anywhere in a line.
func (s *stuffer) write(w *bufio.Writer, p []byte) error {
	for len(p) > 0 {
		if s.afterCR {
			if p[0] != '\n' {
				return fmt.Errorf("%w: CR without LF", ErrStray)
			}
			if err := w.WriteByte('\n'); err != nil {
				return err
			}
			s.midLine, s.afterCR = false, false
			p = p[1:]
			continue
		}
		line := p
		lf := bytes.IndexByte(p, '\n')
		if lf >= 0 {
			line = p[:lf+1]
		}
		cr := bytes.IndexByte(line, '\r')
		switch {
		case lf >= 0 && cr < 0:
			return fmt.Errorf("%w: LF without CR", ErrStray)
		case lf >= 0 && cr < lf-1, lf < 0 && cr >= 0 && cr < len(line)-1:
			return fmt.Errorf("%w: CR without LF", ErrStray)
		}
		s.afterCR = lf < 0 && cr >= 0
		if !s.midLine && line[0] == '.' {
			if _, err := w.Write(dot); err != nil {
				return err
			}
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		s.midLine = lf < 0
		p = p[len(line):]
	}
	return nil
}

// close ends the last line, which content that came by SMTP has always done
// itself (RFC 5321 section 4.1.1.4).
func (s *stuffer) close(w *bufio.Writer) error {
	if s.afterCR {
		return fmt.Errorf("%w: CR at the end", ErrStray)
	}
	if !s.midLine {
		return nil
	}
	s.midLine = false
	_, err := w.Write(crlf)
	return err
}
