package smtpd

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// mailArgument is what stands behind MAIL.
type mailArgument struct {
	from     mail.ReversePath
	size     mail.ByteSize // SIZE, or 0
	eightBit bool
	utf8     bool
	ret      mail.Return
	envID    string
}

// rcptArgument is what stands behind RCPT. path is not parsed yet: it may be
// the bare postmaster.
type rcptArgument struct {
	path     string
	notify   mail.Notify
	original string
}

// The longest ENVID and ORCPT of RFC 3461 sections 4.4 and 4.2.
const (
	envelopeIDBytesMax = 100
	originalBytesMax   = 500
)

// parseMail reads the argument of MAIL (RFC 5321 section 4.1.1.2). A reply
// with a code refuses it.
func parseMail(argument string, sizeMax mail.ByteSize) (mailArgument, mail.Reply) {
	path, rest, ok := cutPath(argument, "FROM:")
	if !ok {
		return mailArgument{}, replySenderSyntax()
	}
	parameters, refusal := parseParameters(rest)
	if refusal.Code != 0 {
		return mailArgument{}, refusal
	}
	var m mailArgument
	for _, p := range parameters {
		if refusal := m.set(p, sizeMax); refusal.Code != 0 {
			return mailArgument{}, refusal
		}
	}
	from, err := mail.ParseReversePath(path, m.utf8)
	if err != nil {
		return mailArgument{}, replySender(err)
	}
	m.from = from
	return m, mail.Reply{}
}

func (m *mailArgument) set(p parameter, sizeMax mail.ByteSize) mail.Reply {
	switch p.key {
	case "SIZE": // RFC 1870
		if p.value == "" || strings.Trim(p.value, "0123456789") != "" {
			return replyBadParameter()
		}
		n, err := strconv.ParseInt(p.value, 10, 64) // Only out of range is left.
		if err != nil || mail.ByteSize(n) > sizeMax {
			return replyTooLarge()
		}
		m.size = mail.ByteSize(n)
	case "BODY": // RFC 6152
		switch strings.ToUpper(p.value) {
		case "7BIT":
		case "8BITMIME":
			m.eightBit = true
		case "BINARYMIME": // RFC 3030, which we do not offer.
			return replyUnknownParameter()
		default:
			return replyBadParameter()
		}
	case "SMTPUTF8": // RFC 6531
		if p.assigned {
			return replyBadParameter()
		}
		m.utf8 = true
	case "RET": // RFC 3461 section 4.3
		switch strings.ToUpper(p.value) {
		case "FULL":
			m.ret = mail.ReturnFull
		case "HDRS":
			m.ret = mail.ReturnHeaders
		default:
			return replyBadParameter()
		}
	case "ENVID": // RFC 3461 section 4.4
		if p.value == "" || len(p.value) > envelopeIDBytesMax || !isXtext(p.value) {
			return replyBadParameter()
		}
		m.envID = p.value
	default:
		return replyUnknownParameter()
	}
	return mail.Reply{}
}

// parseRcpt reads the argument of RCPT (RFC 5321 section 4.1.1.3).
func parseRcpt(argument string, utf8Allowed bool) (rcptArgument, mail.Reply) {
	path, rest, ok := cutPath(argument, "TO:")
	if !ok {
		return rcptArgument{}, replyRecipientSyntax()
	}
	parameters, refusal := parseParameters(rest)
	if refusal.Code != 0 {
		return rcptArgument{}, refusal
	}
	r := rcptArgument{path: path}
	for _, p := range parameters {
		switch p.key {
		case "NOTIFY":
			if r.notify, ok = parseNotify(p.value); !ok {
				return rcptArgument{}, replyBadParameter()
			}
		case "ORCPT":
			if !isOriginal(p.value, utf8Allowed) {
				return rcptArgument{}, replyBadParameter()
			}
			r.original = p.value
		default:
			return rcptArgument{}, replyUnknownParameter()
		}
	}
	return r, mail.Reply{}
}

// parseNotify reads NOTIFY of RFC 3461 section 4.1.
func parseNotify(value string) (mail.Notify, bool) {
	var set mail.Notify
	for word := range strings.SplitSeq(strings.ToUpper(value), ",") {
		var n mail.Notify
		switch word {
		case "NEVER":
			n = mail.NotifyNever
		case "SUCCESS":
			n = mail.NotifySuccess
		case "FAILURE":
			n = mail.NotifyFailure
		case "DELAY":
			n = mail.NotifyDelay
		default:
			return 0, false
		}
		if set&n != 0 {
			return 0, false
		}
		set |= n
	}
	return set, set&mail.NotifyNever == 0 || set == mail.NotifyNever
}

// isOriginal is ORCPT of RFC 3461 section 4.2: addr-type ";" xtext; for the type
// utf-8 the forms of RFC 6533 section 3.
func isOriginal(value string, utf8Allowed bool) bool {
	kind, address, ok := strings.Cut(value, ";")
	if !ok || kind == "" || address == "" || len(value) > originalBytesMax || !isKeyword(kind) {
		return false
	}
	if !strings.EqualFold(kind, "utf-8") {
		return isXtext(address)
	}
	if !utf8.ValidString(address) {
		return false
	}
	for _, r := range address {
		switch {
		case r >= 0x80:
			if !utf8Allowed {
				return false
			}
		case r <= ' ' || r == 0x7f || r == '+' || r == '=':
			return false
		}
	}
	return true
}

// isXtext reports xtext of RFC 3461 section 4 whose decoded form is printable
// ASCII: nobody downstream gets to decode a line end.
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return false
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil || n < ' ' || n > '~' {
				return false
			}
			i += 2
		case c <= ' ' || c > '~' || c == '=':
			return false
		}
	}
	return true
}

func isUpperHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// cutPath splits `FROM:<path> parameters`. Spaces behind the colon are common
// and harmless; a missing bracket is neither.
func cutPath(argument, prefix string) (path, parameters string, ok bool) {
	if len(argument) < len(prefix) || !strings.EqualFold(argument[:len(prefix)], prefix) {
		return "", "", false
	}
	s := strings.TrimLeft(argument[len(prefix):], " ")
	if s == "" || s[0] != '<' {
		return "", "", false
	}
	quoted := false
	for i := 1; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '>' && !quoted:
			rest := s[i+1:]
			return s[1:i], rest, rest == "" || rest[0] == ' '
		}
	}
	return "", "", false
}

// A parameter is esmtp-param of RFC 5321 section 4.1.2, its key in upper case.
type parameter struct {
	key      string
	value    string
	assigned bool // there was a "="
}

func parseParameters(s string) ([]parameter, mail.Reply) {
	var parameters []parameter
	for field := range strings.FieldsSeq(s) {
		key, value, assigned := strings.Cut(field, "=")
		p := parameter{strings.ToUpper(key), value, assigned}
		if !isKeyword(key) || assigned && value == "" || strings.Contains(value, "=") {
			return nil, replyBadParameter()
		}
		for _, other := range parameters {
			if other.key == p.key {
				return nil, replyDuplicateParameter()
			}
		}
		parameters = append(parameters, p)
	}
	return parameters, mail.Reply{}
}

// isKeyword is esmtp-keyword.
func isKeyword(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' && i > 0) {
			return false
		}
	}
	return s != ""
}
