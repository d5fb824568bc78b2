package dsn

import (
	"bytes"
	"strings"
)

// textColumns is the width of the text for people.
const textColumns = 72

// textPart makes the part for people.
func textPart(text []byte) part {
	if isASCII(text) {
		return encoded("text/plain; charset=us-ascii", text)
	}
	return encoded("text/plain; charset=utf-8", text)
}

// text says what happened in plain sentences.
func (r Report) text(third returned) []byte {
	var b bytes.Buffer
	paragraph := func(s string) {
		writeText(&b, "", s)
		b.WriteString("\r\n")
	}
	paragraph("This is the mail system of " + r.nodeName() +
		", a backup host that keeps mail while the mail host of its recipients cannot be reached.")
	message := "Your message"
	if at := r.Original.Envelope.Trace.Received; at > 0 {
		message += " that arrived here on " + date(at)
	}
	switch r.Kind {
	case Delay:
		paragraph(message + " has not been delivered yet to the recipients below. It is kept and tried again; you need not send it again.")
	case Relayed:
		paragraph(message + " was passed on to the mail host of the recipients below, as you wished to hear. That host sends no such reports, so do not expect another when it is delivered.")
	case Expired:
		paragraph(message + " could not be delivered to the recipients below in the time for which mail is kept here. It will not be tried again.")
	default:
		paragraph(message + " could not be delivered to the recipients below: their mail host refused it for good. It will not be tried again.")
	}
	if r.Original.PossibleDuplicate {
		paragraph(r.doubt())
	}
	for _, f := range r.Fates {
		writeText(&b, "", "<"+clean(mailbox(r.recipient(f)).String(), true)+">")
		writeText(&b, "    ", fateText(f))
		if r.Kind == Delay && f.RetryUntil > 0 {
			writeText(&b, "    ", "It is tried again until "+date(f.RetryUntil)+".")
		}
		b.WriteString("\r\n")
	}
	paragraph("The message is known here as " + r.Original.ID.String() + ", and this report as " + r.ID.String() + ".")
	paragraph("The same report for machines and " + third.text() + " follow.")
	return b.Bytes()
}

// doubt is what has to be said where a final dot was sent and its reply not
// learnt (RFC 1047).
func (r Report) doubt() string {
	s := "One attempt to hand this message over ended without an answer that could be recorded. "
	switch r.Kind {
	case Delay:
		return s + "So it may have arrived already, and may arrive twice."
	case Relayed:
		return s + "So it may arrive twice."
	}
	return s + "So the message may have arrived, although this report says that it did not."
}

// fateText says what the next hop said of one recipient.
func fateText(f Fate) string {
	if f.Reply.Code == 0 {
		return "There was no answer from the mail host."
	}
	speaker := "The answer was"
	if remote := remoteName(f.Remote); remote != "" {
		speaker = remote + " said"
	}
	return speaker + ": " + clean(f.Reply.String(), true)
}

// text names the third part.
func (t returned) text() string {
	switch {
	case t.whole:
		return "your message"
	case t.cut:
		return "the first part of your message's header"
	}
	return "your message's header"
}

// writeText writes one paragraph, broken into lines at its spaces. A longer word
// is left whole: the part is encoded where a line becomes too long.
func writeText(b *bytes.Buffer, indent, s string) {
	column := 0
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
			b.WriteString(indent)
			column = len(indent)
		case column+1+len(word) > textColumns:
			b.WriteString("\r\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteString("\r\n")
}
