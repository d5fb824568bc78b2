package mailserver

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

// A Status is what became of a recipient in one attempt.
type Status string

// The statuses.
const (
	Sent     Status = "sent"
	Deferred Status = "deferred"
	Bounced  Status = "bounced"
	// Unsure: the final dot was written, and no reply to it read. Whatever else the
	// log says of the same attempt, the message may have been taken.
	Unsure Status = "unsure"
)

// A Delivery is what a line of a sender's log says about one recipient of a message,
// or, where Recipient is empty, about all that were tried.
type Delivery struct {
	QueueID   string // the sender's own
	Recipient string
	Relay     string
	Status    Status
	Reply     string
}

// ParseDelivery reads a line of a sender's log.
func (m Make) ParseDelivery(line string) (Delivery, bool) {
	switch m {
	case Postfix:
		return parsePostfix(line)
	case Exim:
		return parseExim(line)
	}
	return Delivery{}, false
}

var (
	postfixLine   = regexp.MustCompile(`/(?:smtp|error|virtual)\[\d+\]: ([0-9A-Za-z]+): to=<([^>]*)>,.* relay=([^,]+),.* status=(\w+) \((.*)\)$`)
	postfixUnsure = regexp.MustCompile(`/smtp\[\d+\]: ([0-9A-Za-z]+): (.*message may be sent more than once.*)$`)
	eximLine      = regexp.MustCompile(`^\S+ \S+ ([0-9A-Za-z]+-[0-9A-Za-z]+-[0-9A-Za-z]+) (=>|->|==|\*\*) (\S+)(?: <([^>]*)>)? (.*)$`)
	eximHost      = regexp.MustCompile(`H=(\S+ \[[0-9.]+\])`)
	eximUnsure    = regexp.MustCompile(`^\S+ \S+ ([0-9A-Za-z]+-[0-9A-Za-z]+-[0-9A-Za-z]+) (?:H=.*)?((?:timeout|closed connection|error).* end of data.*)$`)
)

func parsePostfix(line string) (Delivery, bool) {
	if m := postfixLine.FindStringSubmatch(line); m != nil {
		d := Delivery{QueueID: m[1], Recipient: m[2], Relay: m[3], Status: Status(m[4]), Reply: m[5]}
		if strings.Contains(d.Reply, "message may be sent more than once") {
			d.Status = Unsure
		}
		return d, true
	}
	if m := postfixUnsure.FindStringSubmatch(line); m != nil {
		return Delivery{QueueID: m[1], Status: Unsure, Reply: m[2]}, true
	}
	return Delivery{}, false
}

func parseExim(line string) (Delivery, bool) {
	if m := eximLine.FindStringSubmatch(line); m != nil {
		status := map[string]Status{"=>": Sent, "->": Sent, "==": Deferred, "**": Bounced}[m[2]]
		d := Delivery{QueueID: m[1], Recipient: m[3], Status: status, Reply: m[5]}
		if m[4] != "" {
			d.Recipient = m[4] // as it came: what is in front has its local part in lower case
		}
		if host := eximHost.FindStringSubmatch(m[5]); host != nil {
			d.Relay = host[1]
		}
		if status == Sent {
			_, d.Reply, _ = strings.Cut(m[5], ` C="`)
			d.Reply = strings.TrimSuffix(d.Reply, `"`)
		}
		return d, true
	}
	// What the host said to the dot is an answer.
	if m := eximUnsure.FindStringSubmatch(line); m != nil && !strings.Contains(line, "SMTP error from remote mail server") {
		return Delivery{QueueID: m[1], Status: Unsure, Reply: m[2]}, true
	}
	return Delivery{}, false
}

// QueueIDOf is the id in a server's 250 to the final dot, "" if it has none.
func QueueIDOf(reply string) string {
	for _, before := range []string{"queued as ", "OK id="} {
		if _, id, ok := strings.Cut(reply, before); ok {
			return strings.Trim(strings.Fields(id + " .")[0], `")`)
		}
	}
	return ""
}

// HandsOn are the shapes that a make, as the sender, hands on as it got them, but
// for lines over 998 octets, which Postfix folds. Postfix puts an empty line between
// its own Received field and content that begins with no field, so the shapes without
// a header are not among them.
func (m Make) HandsOn() []letter.Shape {
	return []letter.Shape{
		letter.Multipart, letter.EightBit, letter.UTF8Header, letter.Signed, letter.Line998, letter.Line5000, letter.Dots,
		letter.FiveRecipients, letter.TwoDomains, letter.Bounce, letter.Traced, letter.MixedCase, letter.ManyFields, letter.Whitespace,
	}
}

// Keeps are the shapes that a make, as a primary, keeps as it got them. OpenSMTPD has
// no SMTPUTF8 (RFC 6531), and is not given what needs it.
func (m Make) Keeps() []letter.Shape {
	return slices.DeleteFunc(m.HandsOn(), func(s letter.Shape) bool { return m == OpenSMTPD && s == letter.UTF8Header })
}

// foldAt is Postfix's default smtp_line_length_limit.
const foldAt = 998

// Folded is content as Postfix's SMTP client sends it: a line longer than the
// limit is broken into lines of that length, of which all but the first begin
// with a space.
func Folded(content []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(content) {
		line = bytes.TrimSuffix(line, []byte("\r\n"))
		for room := foldAt; len(line) > room; room = foldAt - 1 {
			b.Write(line[:room])
			b.WriteString("\r\n ")
			line = line[room:]
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.Bytes()
}
