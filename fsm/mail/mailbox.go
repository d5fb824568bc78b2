package mail

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Mailbox is one address in the form in which it goes on the wire: Local is
// quoted if it has to be, Host is as the sender spelled it. Two mailboxes are
// the same when Local is equal to the letter (RFC 5321 section 2.4) and the
// hosts have the same Domain.
type Mailbox struct {
	Local string
	Host  string
}

// A ReversePath is where bounces go. The zero value is the null path <>.
type ReversePath struct{ Mailbox }

// A ForwardPath is where a message goes. It is never null.
type ForwardPath struct{ Mailbox }

// The longest local part and path of RFC 5321 sections 4.5.3.1.1 and
// 4.5.3.1.3; the path's count includes its angle brackets.
const (
	localBytesMax = 64
	pathBytesMax  = 256
)

var (
	// ErrAddressSyntax: the address is not a Mailbox of RFC 5321 section 4.1.2,
	// or one of its parts is too long.
	ErrAddressSyntax = errors.New("malformed address")
	// ErrAddressRouting: the local part asks the next hop to send the mail
	// elsewhere (user%host, host!user, user@host@host). A primary that trusts
	// us would obey and be an open relay.
	ErrAddressRouting = errors.New("routing in the local part")
	// ErrAddressUTF8: the address needs SMTPUTF8, which was not given
	// (RFC 6531 section 3.3).
	ErrAddressUTF8 = errors.New("address needs SMTPUTF8")
	// ErrAddressLiteral: the host is an address literal, [192.0.2.1].
	ErrAddressLiteral = errors.New("address literal")
)

// IsNull reports whether p is <>.
func (p ReversePath) IsNull() bool { return p.Mailbox == Mailbox{} }

// String returns the address without angle brackets: "" for the null path.
func (m Mailbox) String() string {
	if m.Host == "" {
		return m.Local
	}
	return m.Local + "@" + m.Host
}

// Domain returns the canonical form of the host, or "" where there is none or
// it is an address literal.
func (m Mailbox) Domain() Domain {
	d, err := ParseDomain(m.Host)
	if err != nil {
		return ""
	}
	return d
}

// NeedsUTF8 reports whether the address can travel only with SMTPUTF8.
func (m Mailbox) NeedsUTF8() bool { return !isASCII(m.Local) || !isASCII(m.Host) }

// ParseReversePath reads the address of a MAIL command, without its angle
// brackets. The empty string is the null path. A source route is stripped
// (RFC 5321 section 4.1.1.3). Address literals are accepted: a bounce to one
// is nobody's relay.
func ParseReversePath(s string, utf8Allowed bool) (ReversePath, error) {
	if s == "" {
		return ReversePath{}, nil
	}
	m, err := parseMailbox(s, utf8Allowed)
	if err != nil && !errors.Is(err, ErrAddressLiteral) {
		return ReversePath{}, err
	}
	return ReversePath{m}, nil
}

// ParseForwardPath reads the address of a RCPT command, without its angle
// brackets. It refuses address literals and local parts that ask to be routed
// on; a source route is stripped, and the final mailbox judged.
func ParseForwardPath(s string, utf8Allowed bool) (ForwardPath, error) {
	m, err := parseMailbox(s, utf8Allowed)
	if err != nil {
		return ForwardPath{}, err
	}
	if strings.ContainsAny(unquoteLocal(m.Local), "@%!") {
		return ForwardPath{}, fmt.Errorf("%w: %q", ErrAddressRouting, m.Local)
	}
	return ForwardPath{m}, nil
}

// parseMailbox reads local-part "@" (domain / address-literal), after an
// optional source route. With ErrAddressLiteral it returns the mailbox too.
func parseMailbox(s string, utf8Allowed bool) (Mailbox, error) {
	if len(s)+2 > pathBytesMax {
		return Mailbox{}, fmt.Errorf("%w: path of %d octets", ErrAddressSyntax, len(s)+2)
	}
	if !utf8.ValidString(s) || hasControl(s) {
		return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressSyntax, s)
	}
	if !utf8Allowed && !isASCII(s) {
		return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressUTF8, s)
	}
	if strings.HasPrefix(s, "@") { // "@a,@b:user@host": RFC 5321 appendix C.
		_, rest, ok := strings.Cut(s, ":")
		if !ok {
			return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressSyntax, s)
		}
		s = rest
	}
	local, host, ok := splitMailbox(s)
	if !ok || local == "" || len(local) > localBytesMax {
		return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressSyntax, s)
	}
	m := Mailbox{Local: local, Host: host}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") && !strings.ContainsAny(host, " <>\"\\@") {
		return m, fmt.Errorf("%w: %q", ErrAddressLiteral, s)
	}
	if _, err := ParseDomain(host); err != nil {
		return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressSyntax, s)
	}
	if !isDotString(local) {
		if !isQuotedString(local) {
			// A second unquoted @ is somebody's attempt at routing, and says more
			// than "malformed".
			if strings.Contains(local, "@") {
				return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressRouting, s)
			}
			return Mailbox{}, fmt.Errorf("%w: %q", ErrAddressSyntax, s)
		}
		if bare := unquoteLocal(local); isDotString(bare) {
			m.Local = bare // "a.b" and a.b are the same mailbox (section 4.1.2).
		}
	}
	return m, nil
}

// splitMailbox cuts at the last @, which in a well-formed mailbox is never
// inside the quotes of the local part, since a host has none.
func splitMailbox(s string) (local, host string, ok bool) {
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return "", "", false
	}
	return s[:at], s[at+1:], true
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// isDotString is Dot-string of RFC 5321 section 4.1.2 with RFC 6531's UTF-8.
func isDotString(s string) bool {
	for atom := range strings.SplitSeq(s, ".") {
		if atom == "" {
			return false
		}
		for i := range len(atom) {
			c := atom[i]
			if !isLetterDigit(c) && c < 0x80 && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) < 0 {
				return false
			}
		}
	}
	return true
}

// isQuotedString is Quoted-string of RFC 5321 section 4.1.2.
func isQuotedString(s string) bool {
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return false
	}
	inner := s[1 : len(s)-1]
	for i := 0; i < len(inner); i++ {
		switch inner[i] {
		case '\\':
			i++
			if i == len(inner) {
				return false
			}
		case '"':
			return false
		}
	}
	return true
}

// unquoteLocal returns the content of a quoted local part, or s itself.
func unquoteLocal(s string) string {
	if !isQuotedString(s) {
		return s
	}
	var b strings.Builder
	inner := s[1 : len(s)-1]
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' {
			i++
		}
		b.WriteByte(inner[i])
	}
	return b.String()
}
