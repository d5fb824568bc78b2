package mailserver

import (
	"bytes"
	"strings"
	"testing"
)

// The rule is Postfix's own, so what it does to the limit exactly matters.
func TestFolded(t *testing.T) {
	for _, c := range []struct{ length, lines int }{{0, 1}, {997, 1}, {998, 1}, {999, 2}, {998 + 997, 2}, {998 + 997 + 1, 3}, {5000, 6}} {
		out := Folded([]byte(strings.Repeat("x", c.length) + "\r\n"))
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
