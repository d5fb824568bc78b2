package load

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/mail"
	"strings"
	"testing"
)

// testPool is for all tests: they only read it.
var testPool = newPool(1)

func newContent(pool []byte, seed uint64, run string) *content {
	return &content{pool: pool, rand: rand.New(rand.NewPCG(seed, 0)), run: run}
}

func whole(c *content, n, size int) []byte { return bytes.Join(c.next(n, size), nil) }

// TestContent: every message has the size asked for, to the octet, and the form
// that goes over the wire as it is, whatever is left over for its last lines.
func TestContent(t *testing.T) {
	pool := testPool
	r := rand.New(rand.NewPCG(2, 0))
	var sizes []int
	for _, s := range AllSizes() {
		sizes = append(sizes, s.draw(r))
	}
	for i := range 3 * lineBytes { // every remainder
		sizes = append(sizes, 4*kib+i)
	}
	for range 100 {
		sizes = append(sizes, 4*kib+r.IntN(128*kib))
	}
	c := newContent(pool, 3, strings.Repeat("w", runMax)+"-9999")
	for n, size := range sizes {
		checkContent(t, whole(c, n+12345678, size), size)
	}
	// The smallest: next to nothing beside the header.
	head := len(c.next(0, 4*kib)[0])
	for _, left := range []int{0, 2, 3, lineBytes - 1, lineBytes, lineBytes + 1, lineBytes + 2} {
		checkContent(t, whole(c, 0, head+left), head+left)
	}
	for _, left := range []int{-1, 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a message with %d octets for its lines was made", left)
				}
			}()
			c.next(0, head+left)
		}()
	}
}

func checkContent(t *testing.T, message []byte, size int) {
	t.Helper()
	if len(message) != size {
		t.Errorf("%d octets, want %d", len(message), size)
	}
	for line := range bytes.Lines(message) {
		if !bytes.HasSuffix(line, []byte("\r\n")) || bytes.IndexByte(line, '\r') != len(line)-2 || len(line) > lineBytes || line[0] == '.' {
			t.Fatalf("a message of %d octets has the line %q of %d", size, line, len(line))
		}
	}
	parsed, err := mail.ReadMessage(bytes.NewReader(message))
	if err != nil {
		t.Fatalf("a message of %d octets: %v", size, err)
	}
	for _, name := range []string{"Received", "From", "To", "Date", "Message-Id"} {
		if len(parsed.Header[name]) != 1 {
			t.Errorf("a message of %d octets has %d fields %s", size, len(parsed.Header[name]), name)
		}
	}
}

// TestContentDiffers: no two messages share a Message-ID or a body, neither in a
// session, nor among sessions, nor among runs of the same seed.
func TestContentDiffers(t *testing.T) {
	pool := testPool
	seen := make(map[string]string)
	once := func(what, value, where string) {
		if first, ok := seen[what+value]; ok {
			t.Fatalf("%s: the %s of %s again", where, what, first)
		}
		seen[what+value] = where
	}
	for _, run := range []string{"a", "b"} {
		for session := range 10 {
			c := newContent(pool, uint64(session), fmt.Sprintf("%s-%d", run, session))
			for n := range 100 {
				message := whole(c, n, 4*kib)
				parsed, err := mail.ReadMessage(bytes.NewReader(message))
				if err != nil {
					t.Fatal(err)
				}
				_, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
				where := fmt.Sprintf("run %s, session %d, message %d", run, session, n)
				once("Message-ID", parsed.Header.Get("Message-ID"), where)
				once("body", string(body), where)
			}
		}
	}
	// Nor is the greater part of two messages the same, which a file system or a
	// device could make use of.
	c := newContent(pool, 1, "a-1")
	tails := make(map[string]bool)
	for n := range 300 {
		_, body, _ := bytes.Cut(whole(c, n, 64*kib), []byte("\r\n\r\n"))
		tails[string(body[2*lineBytes:])] = true
	}
	if len(tails) < 290 {
		t.Errorf("300 bodies have only %d different texts behind their first line", len(tails))
	}
}

func TestDraw(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0))
	for size, want := range map[Sizes]int{Size4K: 4096, Size64K: 65536, Size1M: 1048576, Size25M: 26214400} {
		if got := size.draw(r); got != want {
			t.Errorf("%s: %d octets, want %d", size, got, want)
		}
	}
}

// TestMix: the classes have their shares, and are uniform within.
func TestMix(t *testing.T) {
	classes := []struct {
		above, to int
		share     float64
	}{
		{4*kib - 1, 16 * kib, 0.50}, {16 * kib, 100 * kib, 0.35}, {100 * kib, mib, 0.13}, {mib, 10 * mib, 0.02},
	}
	const draws = 400_000
	counts, sums := make([]int, len(classes)), make([]float64, len(classes))
	quarters := make([][4]int, len(classes))
	r := rand.New(rand.NewPCG(1, 0))
	for range draws {
		size, found := Mix.draw(r), false
		for i, c := range classes {
			if size > c.above && size <= c.to {
				found = true
				counts[i]++
				sums[i] += float64(size)
				quarters[i][min(4*(size-c.above)/(c.to-c.above), 3)]++
			}
		}
		if !found {
			t.Fatalf("a size of %d is in no class", size)
		}
	}
	near := func(what string, got, want, tolerance float64) {
		t.Helper()
		if math.Abs(got-want) > tolerance*want {
			t.Errorf("%s: %.4f, want %.4f", what, got, want)
		}
	}
	total := 0.0
	for i, c := range classes {
		near(fmt.Sprintf("share of class %d", i), float64(counts[i])/draws, c.share, 0.03)
		near(fmt.Sprintf("mean of class %d", i), sums[i]/float64(counts[i]), float64(c.above+c.to)/2, 0.02)
		for q, n := range quarters[i] {
			near(fmt.Sprintf("quarter %d of class %d", q, i), float64(n)/float64(counts[i]), 0.25, 0.06)
		}
		total += sums[i]
	}
	near("mean", total/draws, 216_063, 0.02)
}

// TestContentRepeats: the same seed gives the same messages, another one others.
func TestContentRepeats(t *testing.T) {
	one, other, third := newContent(testPool, 3, "r-1"), newContent(testPool, 3, "r-1"), newContent(testPool, 4, "r-1")
	for n := range 20 {
		message := whole(one, n, 70_000+n)
		if !bytes.Equal(message, whole(other, n, 70_000+n)) {
			t.Fatalf("message %d is another one", n)
		}
		if bytes.Equal(message, whole(third, n, 70_000+n)) {
			t.Fatalf("message %d is that of another seed", n)
		}
	}
}
