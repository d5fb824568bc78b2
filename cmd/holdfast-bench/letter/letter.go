package letter

import (
	"bytes"
	"io"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// A Letter is one message with its envelope.
type Letter struct {
	ID          ledger.MessageID
	Shape       Shape
	ReversePath string // "" is the null reverse-path
	Recipients  []string
	EightBit    bool // needs BODY=8BITMIME (RFC 6152)
	UTF8        bool // needs SMTPUTF8 (RFC 6531)
	// Notify is a parameter for each recipient (RFC 3461), "" for none. Automatic says
	// that the header is a list's or of automatic mail: its sender is told nothing.
	Notify    string
	Automatic bool

	parts  []part
	octets ledger.Octets
}

// A part is a piece of content. No line of a plain part begins with a dot, and
// each plain part begins at the beginning of a line.
type part struct {
	octets []byte
	plain  bool
}

// Of makes a letter of a content that the caller has made. The recipients must
// hold the marker, as those of ledger.Recipient do.
func Of(id ledger.MessageID, reversePath string, recipients []string, eightBit bool, content []byte) *Letter {
	return &Letter{
		ID: id, Shape: Plain, ReversePath: reversePath, Recipients: recipients, EightBit: eightBit,
		parts:  []part{{octets: content}},
		octets: ledger.Octets{Size: int64(len(content)), SHA256: ledger.DigestOf(content)},
	}
}

// Octets is what the receiver must deliver.
func (l *Letter) Octets() ledger.Octets { return l.octets }

// Content returns the whole content in one piece, for tests and small letters.
func (l *Letter) Content() []byte {
	b := make([]byte, 0, l.octets.Size)
	for _, p := range l.parts {
		b = append(b, p.octets...)
	}
	return b
}

// WriteData writes the content as DATA wants it: dots stuffed (RFC 5321
// section 4.5.2), without the final dot.
func (l *Letter) WriteData(w io.Writer) error {
	for _, p := range l.parts {
		if p.plain {
			if _, err := w.Write(p.octets); err != nil {
				return err
			}
			continue
		}
		for line := range bytes.SplitAfterSeq(p.octets, []byte("\n")) {
			if len(line) > 0 && line[0] == '.' {
				if _, err := w.Write([]byte{'.'}); err != nil {
					return err
				}
			}
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
	}
	return nil
}
