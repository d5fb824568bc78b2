package smtpd

import (
	"bytes"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// When a message is taken to go in circles: it has more than receivedMax
// Received fields (RFC 5321 section 6.3 wants at least 100 for those who count
// all trace fields, and allows less; 50 is what Postfix uses), or ours is among
// them for the second time. How much of a header is looked at for them, and how
// much of one field.
const (
	receivedMax       = 50
	ownReceivedMax    = 1
	receivedScanSize  = 1 * mail.MiB
	receivedFieldSize = 2 * mail.KiB
)

// hops counts the Received fields at the head of a message, by octets: no header
// is parsed. It is fed pieces as they come.
type hops struct {
	mark  []byte // what stands in our own Received fields; nil for none
	count int
	own   int
	seen  mail.ByteSize
	done  bool   // the header has ended, or enough of it was seen
	begun bool   // within a line
	field []byte // the current field, up to receivedFieldSize
}

var receivedName = []byte("received:")

func (h *hops) write(p []byte) {
	for len(p) > 0 && !h.done {
		text, ended := p, false
		if n := bytes.IndexByte(p, '\n'); n >= 0 {
			text, ended = p[:n+1], true
		}
		if h.seen += mail.ByteSize(len(text)); h.seen > receivedScanSize {
			h.done = true
		}
		if !h.begun && text[0] != ' ' && text[0] != '\t' { // not a folded line
			h.endField()
			h.done = h.done || text[0] == '\r' || text[0] == '\n' // the body begins
		}
		if room := int(receivedFieldSize) - len(h.field); room > 0 {
			h.field = append(h.field, text[:min(room, len(text))]...)
		}
		h.begun = !ended
		p = p[len(text):]
	}
}

// endField judges the field that has ended.
func (h *hops) endField() {
	if len(h.field) >= len(receivedName) && bytes.EqualFold(h.field[:len(receivedName)], receivedName) {
		h.count++
		if len(h.mark) > 0 && bytes.Contains(h.field, h.mark) {
			h.own++
		}
	}
	h.field = h.field[:0]
}

// looping is asked when the whole message was written.
func (h *hops) looping() bool {
	if !h.done {
		h.endField()
	}
	return h.count > receivedMax || h.own > ownReceivedMax
}
