package dsn

import (
	"bytes"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// ContentBytesMax is how much of a message is looked at, and the largest message
// that is returned whole to who asked for that (RET=FULL). A header that does
// not end within it is not judged, and nothing is reported about its message.
const ContentBytesMax = 256 * mail.KiB

// Kind is what a report is about.
type Kind uint8

// The kinds. Each is one Action of RFC 3464 section 2.3.3, for all its
// recipients.
const (
	Failure Kind = iota + 1 // failed: the next hop refused for good
	Expired                 // failed: it could not be delivered in time
	Delay                   // delayed: it is still being tried
	Relayed                 // relayed: the next hop took it, and sends no reports
)

// String returns the kind for logs.
func (k Kind) String() string {
	switch k {
	case Failure:
		return "failure"
	case Expired:
		return "expired"
	case Delay:
		return "delay"
	case Relayed:
		return "relayed"
	}
	return "unknown"
}

// action is the Action field.
func (k Kind) action() string {
	switch k {
	case Delay:
		return "delayed"
	case Relayed:
		return "relayed"
	}
	return "failed"
}

// failed reports whether the recipients of such a report have failed.
func (k Kind) failed() bool { return k != Delay && k != Relayed }

// A Report is everything that goes into one. Times are Unix seconds, zero where
// they are not known.
//
// Invariant: whoever proposes a report again, under the same ID, hands in the
// same Report, and so proposes the same octets.
type Report struct {
	ID   mail.QueueID // the report's own
	Kind Kind
	Node string // host name of the node that reports
	At   int64  // when it was made
	// Own are the host names of the cluster's nodes.
	Own      []mail.Domain
	Original Original
	Fates    []Fate
}

// An Original is the message that is reported about.
type Original struct {
	ID       mail.QueueID
	Envelope mail.Envelope
	// Content are its first octets as they were received, ContentBytesMax or all.
	Content []byte
	Size    mail.ByteSize // of all of it
	// PossibleDuplicate says that some final dot was sent, or may have been,
	// and its reply was not learnt.
	PossibleDuplicate bool
}

// A Fate is what became of one recipient.
type Fate struct {
	Recipient int // position in Original.Envelope.Recipients
	// Reply is the next hop's last word, zero if it had none. One with an
	// enhanced code and no code is our own verdict.
	Reply       mail.Reply
	Remote      string // host name or address of who said it, "" if nobody did
	LastAttempt int64
	RetryUntil  int64 // of a delay: when it is given up
	// OffersDSN says, for Relayed, that the next hop was handed the recipient's
	// DSN parameters.
	OffersDSN bool
}

// A Message is a report as it is enqueued.
type Message struct {
	Envelope mail.Envelope
	Content  []byte
}

// Compose writes the report about those fates for which Judge says Due. Where
// there is none it returns false, and nothing may be sent.
func Compose(r Report) (Message, bool) {
	var due []Fate
	for i, v := range Judge(r) {
		if v == Due {
			due = append(due, r.Fates[i])
		}
	}
	if len(due) == 0 {
		return Message{}, false
	}
	r.Fates = due
	return r.write(), true
}

// write writes the report about all of its fates, each of which has a recipient,
// to a reverse-path that can be written to.
func (r Report) write() Message {
	to := sendable(r.Original.Envelope.From.Mailbox)
	third := r.returned()
	content := r.assemble(to, []part{textPart(r.text(third)), r.statusPart(), third.part})
	return Message{
		Content: content,
		Envelope: mail.Envelope{
			// RFC 3461 section 6.1: a null reverse-path, no RET, and NEVER, so that
			// nothing is ever reported about a report.
			Recipients: []mail.Recipient{{
				Path: mail.ForwardPath{Mailbox: to}, Domain: to.Domain(), Notify: mail.NotifyNever,
			}},
			EightBit: !isASCII(content),
			SMTPUTF8: to.NeedsUTF8(),
			Trace:    mail.Trace{Hello: r.nodeName(), Node: r.nodeName(), Received: r.At},
		},
	}
}

// assemble writes header and parts.
func (r Report) assemble(to mail.Mailbox, parts []part) []byte {
	mark := boundary(r.ID, parts)
	size, encoding := 1<<10, "7bit"
	for _, p := range parts {
		size += len(p.octets) + 256
		if p.encoding == "8bit" {
			encoding = p.encoding // RFC 2045 section 6.4: the whole is no less than its parts.
		}
	}
	var b bytes.Buffer
	b.Grow(size)
	writeField(&b, "Date", date(r.At))
	writeField(&b, "From", "Mail Delivery System <postmaster@"+r.nodeName()+">")
	writeWhole(&b, "To", "<"+to.String()+">")
	writeField(&b, "Subject", r.subject())
	writeField(&b, "Message-ID", "<"+r.ID.String()+"@"+r.nodeName()+">")
	writeField(&b, "Auto-Submitted", "auto-replied") // RFC 3834 section 5
	writeField(&b, "MIME-Version", "1.0")
	writeField(&b, "Content-Type", "multipart/report; report-type=delivery-status; boundary=\""+mark+"\"")
	writeField(&b, "Content-Transfer-Encoding", encoding)
	b.WriteString("\r\n")
	for _, p := range parts {
		b.WriteString("--" + mark + "\r\n")
		writeField(&b, "Content-Type", p.kind)
		writeField(&b, "Content-Transfer-Encoding", p.encoding)
		b.WriteString("\r\n")
		b.Write(p.octets)
		b.WriteString("\r\n")
	}
	b.WriteString("--" + mark + "--\r\n")
	return b.Bytes()
}

func (r Report) subject() string {
	switch r.Kind {
	case Delay:
		return "Your message is delayed"
	case Relayed:
		return "Your message was passed on"
	}
	return "Your message could not be delivered"
}

// nodeName is the reporting node's host name, in ASCII. The configuration lets
// no other through.
func (r Report) nodeName() string {
	d, err := mail.ParseDomain(r.Node)
	if err != nil {
		return "unknown.invalid"
	}
	return string(d)
}

// global reports whether the forms of RFC 6533 are used.
func (r Report) global() bool { return r.Original.Envelope.SMTPUTF8 }

// recipient returns the recipient that a due fate is about.
func (r Report) recipient(f Fate) mail.Recipient { return r.Original.Envelope.Recipients[f.Recipient] }
