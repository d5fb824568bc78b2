package letter

import (
	"fmt"
	"strings"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// A Shape is a property of real mail that a relay can get wrong.
type Shape string

// The shapes. Plain is what the fixed sizes have.
const (
	Plain          Shape = "plain"
	Multipart      Shape = "multipart"        // base64 attachment
	EightBit       Shape = "8-bit"            // octets over 127 that are no UTF-8
	UTF8Header     Shape = "utf-8 header"     // raw UTF-8 in the header
	Signed         Shape = "dkim"             // a real DKIM signature
	Line998        Shape = "998 octets"       // the longest lawful line
	Line5000       Shape = "5000 octets"      // far over it, as real mail has
	Dots           Shape = "dots"             // lines that begin with dots
	OneDot         Shape = "one dot"          // the content is a dot, and no header
	Empty          Shape = "empty"            // no content at all
	HeaderOnly     Shape = "header only"      // not even the empty line
	FiveRecipients Shape = "five recipients"  // of one domain
	TwoDomains     Shape = "two domains"      // in one transaction
	Bounce         Shape = "null reverse"     // from <>
	Traced         Shape = "own trace"        // the sender's own Received fields
	MixedCase      Shape = "mixed case"       // a local part in mixed case
	BlankStart     Shape = "blank start"      // an empty line first, thus no header
	ManyFields     Shape = "many fields"      // a header of some hundred fields
	Whitespace     Shape = "trailing blanks"  // blanks at line ends and empty lines at the end
	BigAttachment  Shape = "20 MiB"           // one per run
	LongHeaderLine Shape = "long header line" // an unfolded header line of 2,000 octets
)

// Shapes lists what ShapesOfMail sends in turn. BigAttachment comes once, by
// Options.BigAt.
func Shapes() []Shape {
	return []Shape{
		Multipart, EightBit, UTF8Header, Signed, Line998, Line5000, Dots, OneDot, Empty, HeaderOnly,
		FiveRecipients, TwoDomains, Bounce, Traced, MixedCase, BlankStart, ManyFields, Whitespace, LongHeaderLine,
	}
}

func (b *builder) shaped() {
	shapes := Shapes()
	shape := shapes[b.i%len(shapes)]
	if b.i == b.g.o.BigAt {
		shape = BigAttachment
	}
	b.letter.Shape = shape
	// The domain changes with each round of the shapes, so that each shape
	// goes to each domain.
	b.i += b.i / len(shapes)
	b.to("user")
	subject := string(shape)
	switch shape {
	case Multipart:
		b.multipart(20<<10 + b.rand.IntN(60<<10))
	case BigAttachment:
		b.multipart(bigSize)
	case EightBit:
		b.letter.EightBit = true
		b.text(b.header(subject) + "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
			"Gr\xfc\xdfe aus K\xf6ln \xa4 \xff\xfe\x80\r\n\xe9t\xe9\r\n")
	case UTF8Header:
		b.letter.EightBit, b.letter.UTF8 = true, true
		b.text(b.header("Grüße aus Köln, 日本語, 🌍") + "X-Name: Zoë Ångström\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nžluťoučký kůň\r\n")
	case Signed:
		b.text(string(sign(b.header(subject)+"MIME-Version: 1.0\r\n", "A signed body. \r\n\r\n.with a dot\r\n\r\n\r\n")))
	case Line998:
		b.text(b.header(subject) + "\r\n" + strings.Repeat(strings.Repeat("9", 998)+"\r\n", 3))
	case Line5000:
		b.text(b.header(subject) + "\r\n" + strings.Repeat("5", 5000) + "\r\nshort\r\n." + strings.Repeat("6", 4999) + "\r\n")
	case Dots:
		b.text(b.header(subject) + "\r\n.\r\n..\r\n...\r\n.a\r\n..b\r\n \r\n. \r\n.\tc\r\n\r\n.\r\n")
	case OneDot:
		b.text(".\r\n")
	case Empty:
	case HeaderOnly:
		b.text(b.header(subject))
	case FiveRecipients:
		b.to("a", "b", "c", "d", "e")
		b.text(b.header(subject) + "\r\nto five\r\n")
	case TwoDomains:
		b.to("left", "right")
		b.letter.Recipients[1] = ledger.Recipient("right", b.letter.ID, b.domain(b.i+1))
		b.text(b.header(subject) + "\r\nto two domains\r\n")
	case Bounce:
		b.letter.ReversePath = ""
		b.text(b.header(subject) + "Auto-Submitted: auto-replied\r\n\r\nundeliverable\r\n")
	case Traced:
		b.text("Received: from a.test (a.test [192.0.2.1])\r\n\tby b.test (id no) with ESMTP id abc123;\r\n\tMon, 5 Jan 2026 08:59:00 +0000\r\n" +
			"received: by c.test; Mon, 5 Jan 2026 08:58:00 +0000\r\n" + b.header(subject) + "\r\nwith trace\r\n")
	case MixedCase:
		b.to("User.NAME")
		b.text(b.header(subject) + "\r\nthe local part is yours, and case counts\r\n")
	case BlankStart:
		b.text("\r\nno header, marker " + string(b.letter.ID) + "\r\n")
	case ManyFields:
		var fields strings.Builder
		for n := range 300 {
			fmt.Fprintf(&fields, "X-Field-%d: value\r\n\tfolded %d\r\n", n, n)
		}
		b.text(b.header(subject) + fields.String() + "\r\nmany fields\r\n")
	case Whitespace:
		b.text(b.header(subject) + "X-Blank: trailing \t\r\n\r\nblanks behind \t \r\n\t\r\n\r\n\r\n\r\n")
	case LongHeaderLine:
		b.text(b.header(subject) + "X-Long: " + strings.Repeat("h", 2000) + "\r\n\r\nlong header\r\n")
	}
}

func (b *builder) multipart(size int) {
	const boundary = "=_part_of_the_letter"
	b.text(b.header("multipart") + "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"" + boundary + "\"\r\n\r\npreamble\r\n--" + boundary +
		"\r\nContent-Type: text/plain\r\n\r\nSee attached.\r\n--" + boundary +
		"\r\nContent-Type: application/octet-stream; name=\"a.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	b.fill(size)
	// A whole number of lines, so that at least size octets were filled.
	b.fill(poolLine)
	b.text("--" + boundary + "--\r\n")
}
