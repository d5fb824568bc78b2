package dsn

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// decodeXtext decodes xtext of RFC 3461 section 4. It is true only for printable
// ASCII: what would be a line end, or worse, stays encoded.
func decodeXtext(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '+' {
			if i+2 >= len(s) {
				return "", false
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			c, i = byte(n), i+2
		}
		if c < ' ' || c > '~' {
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// envelopeID is the value of Original-Envelope-Id: ENVID decoded (RFC 3461
// section 6.3 a), or as it came where that cannot be.
func envelopeID(xtext string) string {
	if id, ok := decodeXtext(xtext); ok {
		return id
	}
	return clean(xtext, false)
}

// originalRecipient is the value of Original-Recipient: ORCPT decoded (RFC 3461
// section 6.3 d). Where it may hold UTF-8, an address of the type utf-8 is in the
// form utf-8-address, else in its form of 7 bits (RFC 6533 section 3).
func originalRecipient(orcpt string, wide bool) (value string, ok bool) {
	kind, address, ok := strings.Cut(orcpt, ";")
	if !ok || !isAtom(kind) || len(orcpt) > valueBytesMax {
		return "", false
	}
	switch decoded, ok := decodeXtext(address); {
	case strings.EqualFold(kind, "utf-8") && wide:
		address = decodeUnitext(address)
	case strings.EqualFold(kind, "utf-8"):
		address = narrowUnitext(address)
	case ok:
		address = decoded
	default:
		address = clean(address, false)
	}
	return kind + "; " + address, len(kind)+2+len(address) <= valueBytesMax
}

// isAtom reports whether s can be an address-type (RFC 3464 section 2.1.2).
func isAtom(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(`()<>@,;:\".[]`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// finalRecipient is the value of Final-Recipient: the address of the envelope, to
// the letter.
func finalRecipient(r mail.Recipient, wide bool) string {
	address := mailbox(r).String()
	printable := utf8.ValidString(address) && !strings.ContainsFunc(address, func(r rune) bool { return !unicode.IsPrint(r) })
	switch {
	case printable && isASCII([]byte(address)):
		return "rfc822; " + address
	case printable && wide:
		return "utf-8; " + address
	}
	return "utf-8; " + encodeUnitext(address)
}

// mailbox returns a recipient's, the bare postmaster of RFC 5321 section 4.5.1
// with the domain that it was taken for.
func mailbox(r mail.Recipient) mail.Mailbox {
	m := r.Path.Mailbox
	if m.Host == "" {
		m.Host = string(r.Domain)
	}
	return m
}

// encodeUnitext returns an address in the form utf-8-addr-xtext of RFC 6533
// section 3, which is of 7 bits.
func encodeUnitext(address string) string {
	var b strings.Builder
	for _, r := range address {
		if r <= ' ' || r > '~' || r == '\\' || r == '+' || r == '=' {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// narrowUnitext brings what is encoded already, in part, to 7 bits.
func narrowUnitext(encoded string) string {
	var b strings.Builder
	for _, r := range encoded {
		if r <= ' ' || r > '~' {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// decodeUnitext returns the form utf-8-address of an address in any of the three
// forms of RFC 6533 section 3. One that is not UTF-8, or that would hold a
// character that cannot be printed, is left as it is, in 7 bits.
func decodeUnitext(encoded string) string {
	var b strings.Builder
	for rest := encoded; rest != ""; {
		before, after, found := strings.Cut(rest, `\x{`)
		b.WriteString(before)
		if !found {
			break
		}
		digits, behind, closed := strings.Cut(after, "}")
		n, err := strconv.ParseUint(digits, 16, 32)
		if !closed || err != nil || n > unicode.MaxRune {
			return narrowUnitext(encoded)
		}
		b.WriteRune(rune(n))
		rest = behind
	}
	address := b.String()
	if !utf8.ValidString(address) || strings.ContainsFunc(address, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return narrowUnitext(encoded)
	}
	return address
}
