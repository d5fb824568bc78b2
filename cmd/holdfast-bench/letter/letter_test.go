package letter

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

func shapes(seed uint64) *Generator {
	return New(Options{Seed: seed, Domains: []string{"example.test", "example.org"}, Sizes: ShapesOfMail, BigAt: 7})
}

func TestSameSeedSameLetters(t *testing.T) {
	a, b, other := shapes(1), shapes(1), shapes(2)
	differ := false
	for i := range 2 * len(Shapes()) {
		x, y := a.Letter(i), b.Letter(i)
		if x.Octets() != y.Octets() || x.ReversePath != y.ReversePath || !slices.Equal(x.Recipients, y.Recipients) {
			t.Errorf("letter %d differs between two generators of one seed", i)
		}
		differ = differ || x.Octets() != other.Letter(i).Octets()
	}
	if !differ {
		t.Error("another seed makes the same letters")
	}
}

// Every letter is lawful content: CRLF only, its digest right, its stuffed form
// gives it back, its marker in every recipient.
func TestLetters(t *testing.T) {
	for _, sizes := range AllSizes() {
		g := New(Options{Seed: 3, Domains: []string{"example.test", "example.org"}, Sizes: sizes, BigAt: 4})
		seen := make(map[string]bool)
		for i := range 60 {
			l := g.Letter(i)
			content := l.Content()
			if o := l.Octets(); o.Size != int64(len(content)) || o.SHA256 != ledger.DigestOf(content) {
				t.Errorf("%s: %s says %v, has %d octets", sizes, l.ID, o, len(content))
			}
			if bare := strings.NewReplacer("\r\n", "").Replace(string(content)); strings.ContainsAny(bare, "\r\n") {
				t.Errorf("%s: %s (%s) has a stray CR or LF", sizes, l.ID, l.Shape)
			}
			if len(content) > 0 && !bytes.HasSuffix(content, []byte("\r\n")) {
				t.Errorf("%s: %s (%s) does not end in CRLF", sizes, l.ID, l.Shape)
			}
			for _, r := range l.Recipients {
				if id, ok := ledger.MarkerOf(r); !ok || id != l.ID || seen[r] {
					t.Errorf("%s: recipient %s of %s: marker %q, seen before: %v", sizes, r, l.ID, id, seen[r])
				}
				seen[r] = true
			}
			var data bytes.Buffer
			if err := l.WriteData(&data); err != nil {
				t.Fatal(err)
			}
			var back []byte
			for line := range bytes.SplitAfterSeq(data.Bytes(), []byte("\n")) {
				if string(line) == ".\r\n" {
					t.Errorf("%s: %s (%s) holds the end of data", sizes, l.ID, l.Shape)
				}
				back = append(back, bytes.TrimPrefix(line, []byte("."))...)
			}
			if !bytes.Equal(back, content) {
				t.Errorf("%s: %s (%s) is not what its stuffed form gives", sizes, l.ID, l.Shape)
			}
		}
	}
}

// Letters that are refused come as often as told, of each kind to each domain, and the
// others stay what they are.
func TestRefusals(t *testing.T) {
	const every = 5
	plain := shapes(9)
	o := plain.o
	o.RefusedEvery = every
	g := New(o)
	seen := make(map[string]bool)
	for i := range 2 * every * len(Refusals()) {
		l := g.Letter(i)
		refused := slices.ContainsFunc(l.Recipients, IsRefused)
		if refused != (i%every == every-1) {
			t.Fatalf("letter %d (%s) to %v", i, l.Shape, l.Recipients)
		}
		if !refused {
			if l.Octets() != plain.Letter(i).Octets() {
				t.Errorf("letter %d differs from that of a run without refusals", i)
			}
			continue
		}
		seen[string(l.Shape)+domainOf(l.Recipients[0])] = true
		if o := l.Octets(); o.SHA256 != ledger.DigestOf(l.Content()) {
			t.Errorf("letter %d: %v", i, o)
		}
	}
	if len(seen) != 2*len(Refusals()) {
		t.Errorf("%d kinds and domains: %v", len(seen), seen)
	}
}

// A recipient is refused at one stage, whatever the others are asked.
func TestIsRefusedAt(t *testing.T) {
	for recipient, at := range map[string]sink.Stage{
		"nobody+m@example.test": sink.Rcpt, "nobody-2+m@example.test": sink.Rcpt, "vetoed+m@example.test": sink.Dot, "user+m@example.test": "",
	} {
		if IsRefused(recipient) != (at != "") {
			t.Errorf("<%s> refused: %v", recipient, at == "")
		}
		for _, stage := range sink.Stages() {
			if IsRefusedAt(stage, recipient) != (stage == at) {
				t.Errorf("<%s> at %s refused: %v", recipient, stage, stage != at)
			}
		}
	}
}

func TestShapesAreThere(t *testing.T) {
	g := shapes(1)
	longest := make(map[Shape]int)
	for i := range 2 * len(Shapes()) {
		l := g.Letter(i)
		for line := range bytes.SplitSeq(l.Content(), []byte("\r\n")) {
			longest[l.Shape] = max(longest[l.Shape], len(line))
		}
		switch l.Shape {
		case BigAttachment:
			if l.Octets().Size < 20<<20 {
				t.Errorf("the big one has %d octets", l.Octets().Size)
			}
		case Empty:
			if l.Octets().Size != 0 {
				t.Errorf("the empty one has %d octets", l.Octets().Size)
			}
		case OneDot:
			if string(l.Content()) != ".\r\n" {
				t.Errorf("the dot is %q", l.Content())
			}
		case TwoDomains:
			if len(l.Recipients) != 2 || domainOf(l.Recipients[0]) == domainOf(l.Recipients[1]) {
				t.Errorf("recipients %v", l.Recipients)
			}
		}
	}
	for _, s := range append(Shapes(), BigAttachment) {
		if _, ok := longest[s]; !ok {
			t.Errorf("shape %s does not occur", s)
		}
	}
	if longest[Line998] != 998 || longest[Line5000] != 5000 {
		t.Errorf("longest lines %d and %d", longest[Line998], longest[Line5000])
	}
}

func domainOf(address string) string { return address[strings.LastIndexByte(address, '@'):] }

func TestDKIM(t *testing.T) {
	g := shapes(5)
	var message []byte
	for i := 0; message == nil; i++ {
		if l := g.Letter(i); l.Shape == Signed {
			message = l.Content()
		}
	}
	if !bytes.Contains(message, []byte("DKIM-Signature:")) {
		t.Fatal("no signature in the signed letter")
	}
	if err := Verify(message); err != nil {
		t.Errorf("as it was sent: %v", err)
	}
	if err := Verify(append([]byte("Received: by x;\r\n\tnow\r\n"), message...)); err != nil {
		t.Errorf("with trace in front: %v", err)
	}
	for _, change := range [][2]string{{"signed body.", "signed body!"}, {"Subject: dkim", "Subject: dkin"}, {".with", "with"}} {
		changed := bytes.Replace(message, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(changed, message) {
			t.Fatalf("no %q in the letter", change[0])
		}
		if err := Verify(changed); err == nil {
			t.Errorf("%q for %q verifies", change[1], change[0])
		}
	}
}

func BenchmarkLetter64K(b *testing.B) {
	g := New(Options{Seed: 1, Domains: []string{"example.test"}, Sizes: Size64K})
	b.SetBytes(64 << 10)
	for i := range b.N {
		g.Letter(i)
	}
}
