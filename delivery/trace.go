package delivery

import (
	"net/netip"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// foldColumns is where a header line is folded if it can be (RFC 5322
	// section 2.1.1).
	foldColumns = 78
	// receivedMax is the last second of the year 9999, the last that a date-time
	// of RFC 5322 section 3.3 can say.
	receivedMax = 253402300799
)

// traceFields composes the Received field of RFC 5321 section 4.4, with its
// line end. It is made from the envelope alone, so every attempt through any
// node sends the same octets. Nothing in it can end a line or begin another
// clause, whatever a client said. Mark is a comment by which the cluster knows
// its own field when a message comes back.
func traceFields(id mail.QueueID, e mail.Envelope, mark string) []byte {
	t := e.Trace
	from := "from " + helloName(t.Hello)
	if t.Client.IsValid() {
		from += " (" + addressLiteral(t.Client) + ")"
	}
	words := []string{"Received: " + from, "by " + hostName(t.Node)}
	if mark != "" {
		words = append(words, mark)
	}
	words = append(words, "with "+protocolName(t.Protocol))
	if comment := commentText(t.TLS); comment != "" {
		words = append(words, "("+comment+")")
	}
	words = append(words, "id "+id.String())
	// "for" with several recipients would show blind copies to each other.
	if len(e.Recipients) == 1 {
		words = append(words, "for <"+fieldText(e.Recipients[0].Path.String())+">")
	}
	words[len(words)-1] += ";"
	at := time.Unix(min(max(t.Received, 0), receivedMax), 0).UTC()
	words = append(words, at.Format("Mon, 2 Jan 2006 15:04:05 -0700"))

	var b strings.Builder
	column := 0
	for i, w := range words {
		switch {
		case i == 0:
		case column+1+len(w) > foldColumns:
			b.WriteString("\r\n\t")
			column = 8
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(w)
		column += len(w)
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// helloName returns what the client called itself, where that is a domain or
// an address literal; anything else could pass for another clause.
func helloName(s string) string {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		inner, v6 := strings.CutPrefix(inner, "IPv6:")
		if a, err := netip.ParseAddr(inner); ok && err == nil && a.Is6() == v6 && a.Zone() == "" {
			return addressLiteral(a)
		}
		return "unknown"
	}
	return hostName(s)
}

// hostName returns a domain in ASCII, or "unknown".
func hostName(s string) string {
	d, err := mail.ParseDomain(strings.TrimSuffix(s, "."))
	if err != nil {
		return "unknown"
	}
	return string(d)
}

// addressLiteral is RFC 5321 section 4.1.3.
func addressLiteral(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return "[" + a.String() + "]"
	}
	return "[IPv6:" + a.String() + "]"
}

// protocolName is the "with" clause: an atom of letters and digits.
func protocolName(s string) string {
	for i := range len(s) {
		if c := s[i]; !('A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return "SMTP"
		}
	}
	if s == "" || len(s) > 16 {
		return "SMTP"
	}
	return s
}

// commentText keeps what names of protocols and ciphers are made of.
func commentText(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune(" ._-:/=", r):
			return r
		}
		return -1
	}, s)
	return strings.TrimSpace(cutText(s, 64))
}

// fieldText keeps a path on its line. Paths have no control characters; this
// holds even if one did.
func fieldText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
