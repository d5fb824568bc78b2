//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

// passable are the shapes that Postfix, as the sender, hands on as it got them,
// but for lines over 998 octets, which it folds. It puts an empty line between
// its own Received field and content that begins with no field, so the shapes
// without a header are not among them.
func passable(s letter.Shape) bool {
	return slices.Contains([]letter.Shape{
		letter.Multipart, letter.EightBit, letter.UTF8Header, letter.Signed, letter.Line998, letter.Line5000, letter.Dots,
		letter.FiveRecipients, letter.TwoDomains, letter.Bounce, letter.Traced, letter.MixedCase, letter.ManyFields, letter.Whitespace,
	}, s)
}

// foldAt is Postfix's default smtp_line_length_limit.
const foldAt = 998

// folded is content as Postfix's SMTP client sends it: a line longer than the
// limit is broken into lines of that length, of which all but the first begin
// with a space.
func folded(content []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(content) {
		line = bytes.TrimSuffix(line, []byte("\r\n"))
		for room := foldAt; len(line) > room; room = foldAt - 1 {
			b.Write(line[:room])
			b.WriteString("\r\n ")
			line = line[room:]
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

// The rule is Postfix's own, so what it does to the limit exactly matters.
func TestFolded(t *testing.T) {
	for _, c := range []struct{ length, lines int }{{0, 1}, {997, 1}, {998, 1}, {999, 2}, {998 + 997, 2}, {998 + 997 + 1, 3}, {5000, 6}} {
		out := folded([]byte(strings.Repeat("x", c.length) + "\r\n"))
		if got := bytes.Count(out, []byte("\r\n")); got != c.lines {
			t.Errorf("a line of %d became %d lines, want %d", c.length, got, c.lines)
		}
		for line := range bytes.Lines(out) {
			if len(line) > foldAt+2 {
				t.Errorf("a line of %d left a line of %d", c.length, len(line)-2)
			}
		}
	}
}

// delivery is one line of a Postfix log about one recipient.
type delivery struct {
	queueID, recipient, relay, status, reply string
}

var deliveryLine = regexp.MustCompile(`/(?:smtp|error|virtual)\[\d+\]: ([0-9A-Za-z]+): to=<([^>]*)>,.* relay=([^,]+),.* status=(\w+) \((.*)\)$`)

func parseDelivery(line string) (delivery, bool) {
	m := deliveryLine.FindStringSubmatch(line)
	if m == nil {
		return delivery{}, false
	}
	return delivery{queueID: m[1], recipient: m[2], relay: m[3], status: m[4], reply: m[5]}, true
}

// A sentLog turns the log of the sending Postfix into the ledger's outcomes.
type sentLog struct {
	p    *postfix
	book *ledger.Ledger
	seen int // lines
}

// read takes the new lines in and returns their deliveries.
func (s *sentLog) read(t *testing.T) (all []delivery) {
	t.Helper()
	lines := s.p.lines()
	fresh := lines[s.seen:max(s.seen, len(lines)-1)] // the last one may be incomplete
	s.seen += len(fresh)
	for i, line := range fresh {
		d, ok := parseDelivery(line)
		if !ok {
			continue
		}
		all = append(all, d)
		id, _ := ledger.MarkerOf(d.recipient)
		o := ledger.Outcome{ID: id, Attempt: s.seen + i, Recipients: []string{d.recipient}, Reply: d.reply, At: time.Now()}
		switch d.status {
		case "sent":
			o.Result = ledger.OK
			if _, rest, ok := strings.Cut(d.reply, "queued as "); ok {
				o.QueueID = strings.Trim(rest, ") ")
			}
		case "bounced":
			o.Result = ledger.Fail
		default:
			o.Result = ledger.Info // Postfix will try again
		}
		if err := s.book.Outcome(o); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// A maildir records what Postfix, as the primary, delivered.
type maildir struct {
	path string
	book *ledger.Ledger
	seen map[string]bool
}

func (m *maildir) read(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.path, "new"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if m.seen[e.Name()] {
			continue
		}
		m.seen[e.Name()] = true
		data, err := os.ReadFile(filepath.Join(m.path, "new", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		a, err := parseMaildir(data)
		if err != nil {
			t.Fatalf("%s: %v", e.Name(), err)
		}
		if err := m.book.Arrival(a); err != nil {
			t.Fatal(err)
		}
	}
}

// parseMaildir reads a file that a mail server wrote: fields of its own, then the
// message, its line ends as LF.
func parseMaildir(data []byte) (ledger.Arrival, error) {
	a := ledger.Arrival{At: time.Now()}
	own := map[string]func(string){
		"return-path":   func(v string) { a.ReversePath = v },
		"x-original-to": func(string) {},                    // Postfix
		"delivered-to":  func(v string) { a.Recipient = v }, // Postfix, OpenSMTPD
		"envelope-to":   func(v string) { a.Recipient = v }, // Exim
	}
	for {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		name, value, _ := strings.Cut(string(line), ": ")
		set, ok := own[strings.ToLower(name)]
		if !ok {
			break
		}
		set(strings.Trim(value, "<>"))
		data = rest
	}
	if a.Recipient == "" {
		return a, fmt.Errorf("no Delivered-To in %.200q", data)
	}
	var c ledger.Cutter
	for line := range bytes.Lines(data) {
		c.Line(append(bytes.TrimSuffix(line, []byte("\n")), '\r', '\n'), true)
	}
	a.Cuts = c.Finish()
	return a, nil
}
