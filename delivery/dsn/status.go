package dsn

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// statusPart makes the part for machines (RFC 3464 section 2).
func (r Report) statusPart() part {
	var b bytes.Buffer
	if id := r.Original.Envelope.EnvelopeID; id != "" {
		writeWhole(&b, "Original-Envelope-Id", envelopeID(id))
	}
	if d, err := mail.ParseDomain(r.Node); err == nil {
		writeField(&b, "Reporting-MTA", "dns; "+string(d))
	} else { // RFC 3461 section 6.3 b
		writeField(&b, "Reporting-MTA", "x-local-hostname; unknown")
	}
	if at := r.Original.Envelope.Trace.Received; at > 0 {
		writeField(&b, "Arrival-Date", date(at))
	}
	for _, f := range r.Fates {
		b.WriteString("\r\n")
		r.writeFate(&b, f)
	}
	if r.global() {
		return encoded("message/global-delivery-status", b.Bytes())
	}
	return part{"message/delivery-status", "7bit", b.Bytes()} // section 2.1: never encoded
}

// writeFate writes the fields of one recipient in the order of RFC 3464 section
// 2.3.
func (r Report) writeFate(b *bytes.Buffer, f Fate) {
	to := r.recipient(f)
	if value, ok := originalRecipient(to.Original, r.global()); ok {
		writeWhole(b, "Original-Recipient", value)
	}
	writeWhole(b, "Final-Recipient", finalRecipient(to, r.global()))
	writeField(b, "Action", r.Kind.action())
	e := status(r.Kind, f.Reply)
	writeField(b, "Status", fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2]))
	if remote := remoteName(f.Remote); remote != "" {
		writeField(b, "Remote-MTA", "dns; "+remote)
	}
	if f.Reply.Code != 0 {
		writeField(b, "Diagnostic-Code", "smtp; "+clean(f.Reply.String(), r.global()))
	}
	if f.LastAttempt > 0 {
		writeField(b, "Last-Attempt-Date", date(f.LastAttempt))
	}
	writeField(b, "Final-Log-ID", r.Original.ID.String())
	if r.Kind == Delay && f.RetryUntil > 0 {
		writeField(b, "Will-Retry-Until", date(f.RetryUntil))
	}
}

// remoteName is a host name in ASCII or an address literal (RFC 3461 section
// 9.3), or "".
func remoteName(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		if a = a.Unmap().WithZone(""); a.Is4() {
			return "[" + a.String() + "]"
		}
		return "[IPv6:" + a.String() + "]"
	}
	d, err := mail.ParseDomain(strings.TrimSuffix(s, ".")) // as DNS has it
	if err != nil {
		return ""
	}
	return string(d)
}

// status is the Status field: the next hop's enhanced code where it fits what
// is reported, else what its basic code means, else what is certain.
func status(k Kind, r mail.Reply) mail.EnhancedCode {
	e := r.Enhanced
	if !isEnhanced(e) || r.Code != 0 && r.Code/100 != e[0] {
		e = enhancedOf(r.Code)
	}
	switch k {
	case Delay:
		if e[0] == 4 {
			return e
		}
		return mail.EnhancedCode{4, 0, 0}
	case Relayed:
		if e[0] == 2 {
			return e
		}
		return mail.EnhancedCode{2, 0, 0}
	case Expired:
		// RFC 3463 section 3.5, X.4.7: rather the code of the trouble itself, if it
		// is known; of a trouble that lasted, so class 4 stays class 4.
		if e[0] >= 4 && (e[1] != 0 || e[2] != 0) {
			return e
		}
		return mail.EnhancedCode{4, 4, 7}
	}
	if e[0] >= 4 {
		return e
	}
	return mail.EnhancedCode{5, 0, 0}
}

// isEnhanced reports whether e is a code of RFC 3463 section 2.
func isEnhanced(e mail.EnhancedCode) bool {
	return (e[0] == 2 || e[0] == 4 || e[0] == 5) && 0 <= e[1] && e[1] <= 999 && 0 <= e[2] && e[2] <= 999
}

// enhancedOf maps the basic code of a reply that had no enhanced one, by what
// RFC 5321 section 4.2.3 says that it means. A 550 may be about a mailbox, access
// or policy, and a 554 about anything, so nothing is claimed for them (RFC 3461
// section 6.3 g).
func enhancedOf(code int) mail.EnhancedCode {
	switch code {
	case 421:
		return mail.EnhancedCode{4, 3, 2} // not accepting mail now
	case 450:
		return mail.EnhancedCode{4, 2, 0} // mailbox unavailable
	case 451:
		return mail.EnhancedCode{4, 3, 0} // error in processing
	case 452:
		return mail.EnhancedCode{4, 3, 1} // mail system full
	case 455:
		return mail.EnhancedCode{4, 5, 4} // parameters
	case 500:
		return mail.EnhancedCode{5, 5, 2} // syntax
	case 501, 504, 555:
		return mail.EnhancedCode{5, 5, 4} // arguments
	case 502, 503:
		return mail.EnhancedCode{5, 5, 1} // command
	case 551:
		return mail.EnhancedCode{5, 1, 6} // moved
	case 552:
		return mail.EnhancedCode{5, 2, 2} // mailbox full
	case 553:
		return mail.EnhancedCode{5, 1, 3} // address syntax
	case 556:
		return mail.EnhancedCode{5, 1, 10} // RFC 7505: takes no mail
	}
	switch code / 100 {
	case 2, 4, 5:
		return mail.EnhancedCode{code / 100, 0, 0}
	}
	return mail.EnhancedCode{}
}
