package dsn

import (
	"bytes"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// foldColumns is where a line is folded if it can be (RFC 5322 section 2.1.1).
	foldColumns = 78
	// valueBytesMax is the longest value of a field. With a name before it, it is
	// on a line of less than 998 octets even where it has no space to be folded at.
	valueBytesMax = 900
	// dateMax is the last second of the year 9999, the last that a date-time of RFC
	// 5322 section 3.3 can say.
	dateMax = 253402300799
)

// writeField writes a field, folded at its spaces. Runs of space become one, so
// that no line of it is empty.
func writeField(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ":")
	column := len(name) + 1
	for i, word := range strings.Fields(cutText(value, valueBytesMax)) {
		if i > 0 && column+1+len(word) > foldColumns {
			b.WriteString("\r\n")
			column = 0
		}
		b.WriteString(" " + word)
		column += 1 + len(word)
	}
	b.WriteString("\r\n")
}

// writeWhole writes a field whose spaces mean something, on one line.
func writeWhole(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ": " + cutText(value, valueBytesMax) + "\r\n")
}

// date is date-time of RFC 5322 section 3.3.
func date(unix int64) string {
	return time.Unix(min(max(unix, 0), dateMax), 0).UTC().Format("Mon, 2 Jan 2006 15:04:05 -0700")
}

// clean returns what a stranger said without anything but printable characters
// and single spaces: no line end, no control character, nothing that turns the
// direction of text. Others become a question mark, as do, unless wide, those
// outside ASCII.
func clean(s string, wide bool) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r) || !wide && r > '~':
			return '?'
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// cutText returns at most n octets of s, cut at the start of a rune.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func isASCII(octets []byte) bool {
	for _, c := range octets {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
