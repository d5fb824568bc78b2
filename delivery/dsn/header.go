package dsn

import (
	"bytes"
	"strings"
)

// returnedHeaderBytesMax is how much of a header is sent back.
const returnedHeaderBytesMax = 64 << 10

// A header is what a stranger's message says of itself. What forbids a report
// is searched up to the first empty line, past lines that are no fields; what is
// sent back ends where the first such line stands.
type header struct {
	telling []field // those that may forbid a report
	whole   bool    // its end was seen
	fields  []byte  // as they came
	// cut is where fields is cut to be no longer than returnedHeaderBytesMax, at
	// the beginning of a line where there is one.
	cut int
}

// A field is one of the header, its body folded as it came.
type field struct {
	name string // in lower case
	body []byte
}

// readHeader reads the first octets of a message, or all of them. It takes time
// in proportion to them, whatever they are.
func readHeader(content []byte, all bool) header {
	var h header
	end := -1        // of the fields, once a line was none
	fielded := false // the line belongs to a field
	body := -1       // where the body began of a telling field that the next line may continue
	at := 0
	for at < len(content) {
		next := len(content)
		if lf := bytes.IndexByte(content[at:], '\n'); lf >= 0 {
			next = at + lf + 1
		} else if !all {
			break // cut in the middle: it may have been any line
		}
		if at <= returnedHeaderBytesMax {
			h.cut = at
		}
		octets := trimLineEnd(content[at:next])
		if len(octets) == 0 {
			h.whole = true
			break
		}
		name, isField := fieldName(octets)
		switch {
		case octets[0] == ' ' || octets[0] == '\t':
			if body >= 0 {
				h.telling[len(h.telling)-1].body = content[body:next]
			}
		case isField:
			fielded, body = true, -1
			if isTelling(name) {
				body = at + bytes.IndexByte(octets, ':') + 1
				h.telling = append(h.telling, field{name, content[body:next]})
			}
		default:
			fielded, body = false, -1
		}
		if !fielded && end < 0 {
			end = at
		}
		at = next
	}
	if at == len(content) && all {
		h.whole = true // a message of a header alone
	}
	if end < 0 {
		end = at
	}
	h.fields = content[:end]
	if end <= returnedHeaderBytesMax {
		h.cut = end
	} else if h.cut == 0 {
		h.cut = returnedHeaderBytesMax
	}
	return h
}

// trimLineEnd takes off LF and the CR before it.
func trimLineEnd(octets []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(octets, []byte("\n")), []byte("\r"))
}

// fieldName returns the name of a field in lower case (RFC 5322 section 2.2;
// section 4.5 allows space before the colon).
func fieldName(octets []byte) (string, bool) {
	colon := bytes.IndexByte(octets, ':')
	if colon < 0 {
		return "", false
	}
	name := bytes.TrimRight(octets[:colon], " \t")
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return "", false
		}
	}
	return strings.ToLower(string(name)), len(name) > 0
}

// isTelling reports whether a field of that name may forbid a report.
func isTelling(name string) bool {
	return name == "auto-submitted" || name == "precedence" || strings.HasPrefix(name, "list-")
}

// judge applies the rules about automatic and list mail.
func (h header) judge() Verdict {
	for _, f := range h.telling {
		switch f.name {
		case "auto-submitted":
			// RFC 3834 section 5. What cannot be read is not "no".
			if plainValue(f.body) != "no" {
				return AutoSubmitted
			}
		case "precedence":
			for word := range strings.FieldsFuncSeq(plainValue(f.body), isNoLetter) {
				if word == "bulk" || word == "list" || word == "junk" {
					return BulkMail
				}
			}
		default:
			return ListMail
		}
	}
	if !h.whole {
		return HeaderTooLong
	}
	return Due
}

func isNoLetter(r rune) bool { return r < 'a' || r > 'z' }

// plainValue returns a field's body without comments and parameters, in lower
// case.
func plainValue(body []byte) string {
	var b strings.Builder
	depth := 0
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == '\\' && depth > 0:
			i++
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case c == ';':
			return strings.ToLower(strings.TrimSpace(b.String()))
		default:
			b.WriteByte(c)
		}
	}
	return strings.ToLower(strings.TrimSpace(b.String()))
}
