package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// escape makes text from outside safe to print: what a terminal could take for
// a command, or what would show it out of order, is written as \x1b or \u202e.
func escape(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, r < 0x80 && !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !strconv.IsPrint(r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// escapeLines is escape for a message of ours of several lines.
func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = escape(l)
	}
	return strings.Join(lines, "\n")
}

// writeJSON prints v for programs: indented, one trailing newline, and with
// everything escaped that a terminal must not see.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	var out strings.Builder
	for _, r := range b.String() {
		switch {
		case r == '\n' || strconv.IsPrint(r): // the encoder escaped those in strings
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// A table prints rows in aligned columns. Cells are escaped.
type table struct {
	tab *tabwriter.Writer
}

func newTable(w io.Writer, headers ...string) *table {
	t := &table{tab: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(headers) > 0 {
		t.row(headers...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		if i > 0 {
			fmt.Fprint(t.tab, "\t")
		}
		fmt.Fprint(t.tab, escape(c))
	}
	fmt.Fprintln(t.tab)
}

func (t *table) flush() error { return t.tab.Flush() }

// count prints a number of things in a cell.
func count[N uint32 | uint64 | int64 | int](n N) string { return fmt.Sprint(n) }

// moment prints a time and how long ago it was.
func moment(unix int64) string {
	if unix == 0 {
		return ""
	}
	at := time.Unix(unix, 0).UTC()
	return at.Format("2006-01-02 15:04:05Z") + " (" + span(time.Since(at)) + ")"
}

// span prints a length of time in its two largest units.
func span(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// size prints a number of octets.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// freshness says whose view an answer is, where that matters: when the node is
// out of touch with the leader, or behind it.
func freshness(f *adminpb.Freshness) string {
	switch {
	case f.StaleMs == nil:
		return fmt.Sprintf("as of index %d on %s, which has heard from no leader since it started", f.GetAppliedIndex(), f.GetNode())
	case f.GetStaleMs() > staleNotice.Milliseconds():
		return fmt.Sprintf("as of index %d on %s, which last heard from a leader %s ago", f.GetAppliedIndex(), f.GetNode(),
			span(time.Duration(f.GetStaleMs())*time.Millisecond))
	case f.GetCatchingUp():
		return fmt.Sprintf("as of index %d on %s, which is catching up with the leader", f.GetAppliedIndex(), f.GetNode())
	}
	return ""
}

// staleNotice is how old an answer may be without a word about it: a follower
// hears from its leader several times a second.
const staleNotice = 5 * time.Second

// noteFreshness warns on standard error, so that standard output stays a table.
func (a *app) noteFreshness(f *adminpb.Freshness) {
	if text := freshness(f); text != "" {
		a.complain("%s", text)
	}
}

// staleMS is stale_ms in JSON: null where it is unknown.
func staleMS(f *adminpb.Freshness) *int64 { return f.StaleMs }

// list makes an empty slice of a nil one, so that JSON says [] and not null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
