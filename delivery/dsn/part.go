package dsn

import (
	"bytes"
	"fmt"
	"mime/quotedprintable"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A part is one of the three under multipart/report, its octets as they go out.
type part struct {
	kind     string // Content-Type
	encoding string // Content-Transfer-Encoding
	octets   []byte
}

// lineBytesMax is the longest line of RFC 5322 section 2.1.1, without CRLF.
const lineBytesMax = 998

// encoded returns a part in 7 bits and short lines, quoted-printable where its
// octets are not so already.
func encoded(kind string, octets []byte) part {
	if _, plain := survey(octets); plain && isASCII(octets) {
		return part{kind, "7bit", octets}
	}
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	_, _ = w.Write(octets) // a Buffer takes all of it
	_ = w.Close()
	return part{kind, "quoted-printable", b.Bytes()}
}

// survey looks for what may not stand in a message without encoding: a CR or LF
// without the other (stray), and long lines or control characters (no longer
// plain). Octets of 8 bits are neither.
func survey(octets []byte) (stray, plain bool) {
	plain = true
	for rest := octets; len(rest) > 0; {
		line := rest
		lf := bytes.IndexByte(rest, '\n')
		if lf >= 0 {
			line, rest = rest[:lf], rest[lf+1:]
			if !bytes.HasSuffix(line, []byte("\r")) {
				stray = true
			}
			line = bytes.TrimSuffix(line, []byte("\r"))
		} else {
			rest = nil
		}
		if len(line) > lineBytesMax {
			plain = false
		}
		for _, c := range line {
			switch {
			case c == '\r':
				stray = true
			case c < ' ' && c != '\t' || c == 0x7f:
				plain = false
			}
		}
	}
	return stray, plain && !stray
}

// canonical returns lines that end in CRLF, each stray CR a space and each stray
// LF a line end, as content is brought to before it is stored.
func canonical(octets []byte) []byte {
	if stray, _ := survey(octets); !stray {
		return octets
	}
	out := make([]byte, 0, len(octets)+len(octets)/8)
	for i, c := range octets {
		switch {
		case c == '\n':
			out = append(out, '\r', '\n')
		case c == '\r' && i+1 < len(octets) && octets[i+1] == '\n':
		case c == '\r':
			out = append(out, ' ')
		default:
			out = append(out, c)
		}
	}
	return out
}

// A returned is the third part, and what the first says of it.
type returned struct {
	part
	whole bool // the message and not only its header
	cut   bool // the header, and not all of it
}

// returned makes the third part: the header, or after RET=FULL the message, if
// it is a failure that is reported and the message no longer than
// ContentBytesMax (RFC 3461 sections 4.3 and 6.2). A message that breaks the
// rules for lines, and whose media type may not be encoded (RFC 2046 section
// 5.2.1), is represented by its header.
func (r Report) returned() returned {
	o := r.Original
	content := o.Content
	all := mail.ByteSize(len(content)) >= o.Size
	if len(content) > int(ContentBytesMax) {
		content, all = content[:ContentBytesMax], false
	}
	if r.Kind.failed() && o.Envelope.Return == mail.ReturnFull && all {
		stray, plain := survey(content)
		switch {
		case r.global():
			// RFC 6532 section 3.7 lets it be encoded, so it gets through where the way
			// back does not know SMTPUTF8 (RFC 6533 section 4.5).
			return returned{part: encoded("message/global", canonical(content)), whole: true}
		case !stray && plain && isASCII(content):
			return returned{part: part{"message/rfc822", "7bit", content}, whole: true}
		case !stray && plain:
			return returned{part: part{"message/rfc822", "8bit", content}, whole: true}
		}
	}
	kind := "text/rfc822-headers"
	if r.global() {
		kind = "message/global-headers"
	}
	h := readHeader(content, all)
	return returned{part: encoded(kind, canonical(h.fields[:h.cut])), cut: h.cut < len(h.fields) || !h.whole}
}

// boundaryDigits is the length of the number at the end of a boundary. It is
// larger than any part could use up.
const boundaryDigits = 6

// boundary returns a boundary that stands nowhere in the parts. It is made from
// the report's id and the least number that is free. An "=_" stands in nothing
// that is quoted-printable.
func boundary(id mail.QueueID, parts []part) string {
	prefix := "=_" + id.String() + "_"
	used := make(map[string]bool)
	for _, p := range parts {
		for rest := p.octets; ; {
			at := bytes.Index(rest, []byte(prefix))
			if at < 0 {
				break
			}
			rest = rest[at+len(prefix):]
			used[string(rest[:min(len(rest), boundaryDigits)])] = true
		}
	}
	for n := 0; ; n++ {
		if number := fmt.Sprintf("%0*d", boundaryDigits, n); !used[number] {
			return prefix + number
		}
	}
}
