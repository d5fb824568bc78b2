package smtpd

import (
	"bytes"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The count of Received fields above which a message is taken to go in circles
// (RFC 5321 section 6.3 wants at least 100 for those who count all trace
// fields, and allows less; 50 is what Postfix uses), and how much of a header
// is looked at for them.
const (
	receivedMax      = 50
	receivedScanSize = 1 * mail.MiB
)

// receivedCount counts the Received fields at the head of a message, by octets:
// no header is parsed. It is fed pieces as they come.
type receivedCount struct {
	count int
	seen  mail.ByteSize
	done  bool   // the header has ended, or enough of it was seen
	line  []byte // the first octets of the current line, as far as they matter
}

const receivedName = "received:"

func (s *receivedCount) write(p []byte) {
	for len(p) > 0 && !s.done {
		n := bytes.IndexByte(p, '\n')
		text, ended := p, false
		if n >= 0 {
			text, ended = p[:n+1], true
		}
		if s.seen += mail.ByteSize(len(text)); s.seen > receivedScanSize {
			s.done = true
		}
		if room := len(receivedName) - len(s.line); room > 0 {
			s.line = append(s.line, text[:min(room, len(text))]...)
		}
		if ended {
			switch {
			case len(s.line) <= 2: // CRLF alone: the body begins.
				s.done = true
			case bytes.EqualFold(s.line, []byte(receivedName)):
				s.count++
			}
			s.line = s.line[:0]
		}
		p = p[len(text):]
	}
}

func (s *receivedCount) tooMany() bool { return s.count > receivedMax }
