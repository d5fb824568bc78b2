package load

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// contents returns what two sessions of one run write.
func contents(seed uint64) []*content {
	pool := newPool(seed)
	var all []*content
	for i, run := range []string{"r-0", "r-1"} {
		all = append(all, &content{pool: pool, rand: rand.New(rand.NewPCG(seed, uint64(i))), run: run})
	}
	return all
}

func joined(c *content, n, size int) []byte { return bytes.Join(c.next(n, size), nil) }

// Every message has its size to the octet, in lines that any server takes, and
// no line that dot-stuffing would have to change.
func TestContentIsWellFormed(t *testing.T) {
	c := contents(1)[0]
	sizes := []int{64 * kib, mib}
	for size := 4 * kib; size < 4*kib+3*lineBytes; size++ {
		sizes = append(sizes, size)
	}
	for n, size := range sizes {
		message := joined(c, n, size)
		if len(message) != size {
			t.Fatalf("message of %d octets: got %d", size, len(message))
		}
		text, whole := strings.CutSuffix(string(message), "\r\n")
		if !whole {
			t.Fatalf("message of %d octets: does not end in CRLF", size)
		}
		header, _, split := strings.Cut(text, "\r\n\r\n")
		if !split || !strings.Contains(header, "\r\nMessage-ID: <") {
			t.Fatalf("message of %d octets: header %q", size, header)
		}
		for i, line := range strings.Split(text, "\r\n") {
			// The trace field alone is longer than what we call a line.
			if strings.ContainsAny(line, "\r\n") || strings.HasPrefix(line, ".") || len(line) > lineBytes-2 && i > 0 {
				t.Fatalf("message of %d octets, line %d: %q", size, i, line)
			}
		}
	}
}

var messageID = regexp.MustCompile(`\r\nMessage-ID: (<[^>\r]+>)\r\n`)

// No two messages have the same Message-ID, header aside the same body, or a
// body that begins alike.
func TestContentsDiffer(t *testing.T) {
	ids, bodies, lines := map[string]bool{}, map[string]bool{}, map[string]bool{}
	const each = 2000
	sessions := contents(7)
	for n := range each {
		for _, c := range sessions {
			message := joined(c, n, 4*kib)
			id := messageID.FindSubmatch(message)
			_, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
			line, _, _ := bytes.Cut(body, []byte("\r\n"))
			if id == nil {
				t.Fatalf("no Message-ID: %q", message[:400])
			}
			ids[string(id[1])], bodies[string(body)], lines[string(line)] = true, true, true
		}
	}
	want := each * len(sessions)
	if len(ids) != want || len(bodies) != want || len(lines) != want {
		t.Errorf("of %d messages: %d Message-IDs, %d bodies, %d first lines", want, len(ids), len(bodies), len(lines))
	}
}

// The same seed gives the same messages.
func TestContentRepeats(t *testing.T) {
	one, other := contents(3)[1], contents(3)[1]
	for n := range 20 {
		if !bytes.Equal(joined(one, n, 70_000+n), joined(other, n, 70_000+n)) {
			t.Fatalf("message %d is another one", n)
		}
	}
	if bytes.Equal(joined(contents(3)[0], 0, 4096), joined(contents(4)[0], 0, 4096)) {
		t.Error("another seed, the same message")
	}
}

func TestMix(t *testing.T) {
	const draws = 200_000
	r := rand.New(rand.NewPCG(1, 2))
	classes := []struct {
		max   int
		share float64
		count int
		bytes float64
		low   int
	}{{max: 16 * kib, share: 0.50, low: 4 * kib}, {max: 100 * kib, share: 0.35, low: 16 * kib}, {max: mib, share: 0.13, low: 100 * kib}, {max: 10 * mib, share: 0.02, low: mib}}
	for range draws {
		size := Mix.draw(r)
		if size < 4*kib || size > 10*mib {
			t.Fatalf("a message of %d octets", size)
		}
		for i := range classes {
			if c := &classes[i]; size <= c.max {
				c.count++
				c.bytes += float64(size)
				break
			}
		}
	}
	for _, c := range classes {
		if got := float64(c.count) / draws; got < c.share*0.95 || got > c.share*1.05 {
			t.Errorf("up to %d octets: %.4f of the messages, want %.2f", c.max, got, c.share)
		}
		// Uniform within the class: the mean is in the middle.
		if mean, want := c.bytes/float64(c.count), float64(c.low+c.max)/2; mean < want*0.97 || mean > want*1.03 {
			t.Errorf("up to %d octets: mean %.0f, want %.0f", c.max, mean, want)
		}
	}
	for size, want := range map[Sizes]int{Size4K: 4096, Size64K: 65536, Size1M: 1 << 20, Size25M: 25 << 20} {
		if got := size.draw(r); got != want {
			t.Errorf("%s: %d", size, got)
		}
	}
}
