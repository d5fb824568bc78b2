package dsn

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Verdict says whether a report about a recipient is due, or why none is
// made.
type Verdict uint8

// The verdicts. Those from NullSender to HeaderTooLong are about the message
// and meet all its recipients, the others about one.
const (
	// Due: a report is to be made.
	Due Verdict = iota + 1
	// NullSender: a report, or other mail to which nobody wants an answer (RFC
	// 5321 section 4.5.5).
	NullSender
	// Unreachable: the reverse-path has no domain to send to, or characters that
	// cannot stand in a header.
	Unreachable
	// OwnSender: the reverse-path is at a host of the cluster, from which the
	// report would come back.
	OwnSender
	// SelfSent: the reverse-path is one of the recipients that cannot be reached.
	SelfSent
	// AutoSubmitted: a machine sent it (RFC 3834 section 5).
	AutoSubmitted
	// BulkMail: its Precedence is bulk, list or junk.
	BulkMail
	// ListMail: it has a List- field (RFC 2369, RFC 2919).
	ListMail
	// HeaderTooLong: its header does not end within what is looked at, so it
	// cannot be known who sent it.
	HeaderTooLong
	// NotifyNever: the sender said NOTIFY=NEVER (RFC 3461 section 4.1).
	NotifyNever
	// NotAsked: the sender did not ask for reports of this kind.
	NotAsked
	// NextHopReports: the next hop was told what the sender asked for.
	NextHopReports
	// NoRecipient: the message has no such recipient, or the kind is unknown.
	NoRecipient
)

// String returns the verdict for logs and for people: why no report was made.
func (v Verdict) String() string {
	switch v {
	case Due:
		return "due"
	case NullSender:
		return "the sender is null"
	case Unreachable:
		return "the sender's address cannot be written to"
	case OwnSender:
		return "the sender is a host of this cluster"
	case SelfSent:
		return "the sender is the recipient that cannot be reached"
	case AutoSubmitted:
		return "the message is automatic"
	case BulkMail:
		return "the message is bulk mail"
	case ListMail:
		return "the message is from a mailing list"
	case HeaderTooLong:
		return "the message's header is too long to be judged"
	case NotifyNever:
		return "the sender wants no reports"
	case NotAsked:
		return "the sender did not ask for this report"
	case NextHopReports:
		return "the next hop reports itself"
	case NoRecipient:
		return "no such recipient"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// Judge says for each of r.Fates, in their order, whether a report is due.
func Judge(r Report) []Verdict {
	verdicts := make([]Verdict, len(r.Fates))
	whole := r.judgeMessage()
	for i, f := range r.Fates {
		switch {
		case f.Recipient < 0 || f.Recipient >= len(r.Original.Envelope.Recipients):
			verdicts[i] = NoRecipient
		case whole != Due:
			verdicts[i] = whole
		default:
			verdicts[i] = judgeNotify(r.Kind, r.recipient(f).Notify, f.OffersDSN)
		}
	}
	return verdicts
}

// judgeMessage holds what does not depend on what a recipient asked for. The
// envelope is judged first, since it costs nothing.
func (r Report) judgeMessage() Verdict {
	from := r.Original.Envelope.From
	domain := from.Domain()
	switch {
	case from.IsNull():
		return NullSender
	case domain == "" || !isWritable(from.Mailbox):
		return Unreachable
	case string(domain) == r.nodeName() || slices.Contains(r.Own, domain):
		return OwnSender
	case r.Kind != Relayed && r.isSelfSent():
		return SelfSent
	}
	content := r.Original.Content
	whole := mail.ByteSize(len(content)) >= r.Original.Size
	if len(content) > int(ContentBytesMax) {
		content, whole = content[:ContentBytesMax], false
	}
	return readHeader(content, whole).judge()
}

// isSelfSent reports whether a recipient of the report is who sent the message:
// what could not reach him cannot be reported to him either. Hardly a host tells
// mailboxes apart by the case of their letters, so a report less is the safe side.
func (r Report) isSelfSent() bool {
	from := r.Original.Envelope.From
	for _, f := range r.Fates {
		if f.Recipient < 0 || f.Recipient >= len(r.Original.Envelope.Recipients) {
			continue
		}
		to := mailbox(r.recipient(f))
		if strings.EqualFold(to.Local, from.Local) && to.Domain() == from.Domain() {
			return true
		}
	}
	return false
}

// isWritable reports whether a mailbox can stand in a To field and on a command
// line. It was parsed when it came; what is checked here again keeps it from
// becoming a field of its own in a report.
func isWritable(m mail.Mailbox) bool {
	if _, err := mail.ParseReversePath(m.String(), true); err != nil || strings.HasPrefix(m.Local, "@") {
		return false
	}
	return !strings.ContainsFunc(m.String(), func(r rune) bool { return !unicode.IsPrint(r) })
}

// sendable returns the mailbox with its host in ASCII where that spares the
// report SMTPUTF8.
func sendable(m mail.Mailbox) mail.Mailbox {
	if isASCII([]byte(m.Local)) && !isASCII([]byte(m.Host)) {
		m.Host = string(m.Domain())
	}
	return m
}

// judgeNotify holds RFC 3461 sections 5.2.2, 5.2.5 and 5.2.6. Who gave no NOTIFY
// hears of failures, and of nothing else: section 5.2.5 leaves delays to us, and
// a sender who is told that his mail waits at a backup takes it for lost.
func judgeNotify(k Kind, n mail.Notify, offersDSN bool) Verdict {
	if n&mail.NotifyNever != 0 {
		return NotifyNever
	}
	asked := false
	switch k {
	case Failure, Expired:
		asked = n == 0 || n&mail.NotifyFailure != 0
	case Delay:
		asked = n&mail.NotifyDelay != 0
	case Relayed:
		if asked = n&mail.NotifySuccess != 0; asked && !OwesRelayed(n, offersDSN) {
			return NextHopReports
		}
	default:
		return NoRecipient
	}
	if !asked {
		return NotAsked
	}
	return Due
}

// OwesRelayed says whether a recipient's delivery is ours to report: the sender
// asked for a report of success, and the next hop took the recipient without
// having been told so, since it does not offer DSN (RFC 3461 section 5.2.2 b).
// One that offers it has the parameters, and the report is its own to make
// (section 5.2.1).
func OwesRelayed(n mail.Notify, offersDSN bool) bool {
	return !offersDSN && n&mail.NotifySuccess != 0 && n&mail.NotifyNever == 0
}
