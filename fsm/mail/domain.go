package mail

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// A Domain is a DNS name in the one form in which we compare and store names:
// ASCII (A-labels), lower case, no trailing dot. The zero value is no domain.
type Domain string

// domainBytesMax is the longest domain of RFC 5321 section 4.5.3.1.2.
const domainBytesMax = 255

// errDomain says what is wrong with a domain without repeating hostile bytes.
var errDomain = errors.New("not a domain name")

// ParseDomain brings a name to its canonical form. It accepts upper case and
// U-labels; it refuses address literals, empty labels, a trailing dot, and
// characters that no host name has.
func ParseDomain(s string) (Domain, error) {
	if s == "" || len(s) > domainBytesMax {
		return "", fmt.Errorf("domain of %d octets: %w", len(s), errDomain)
	}
	name := strings.ToLower(s)
	if !isASCII(s) {
		// The mapping would take a broken byte for U+FFFD, and let it pass.
		if !utf8.ValidString(s) {
			return "", fmt.Errorf("domain %q: %w", s, errDomain)
		}
		a, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("domain %q: %w", s, errDomain)
		}
		name = a
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", fmt.Errorf("domain %q: %w", s, errDomain)
		}
		for i := range len(label) {
			// The underscore is no host name character (RFC 952), but real
			// domains use it, and it is harmless on a command line.
			if c := label[i]; !isLetterDigit(c) && c != '-' && c != '_' {
				return "", fmt.Errorf("domain %q: %w", s, errDomain)
			}
		}
	}
	if len(name) > domainBytesMax {
		return "", fmt.Errorf("domain %q: %w", s, errDomain)
	}
	return Domain(name), nil
}

func isLetterDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
