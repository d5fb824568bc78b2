package ledger

import (
	"fmt"
	"time"
)

// A Wait says how long a client waited for one reply, or for the end of the
// connection in its place: from when the server could begin with the command to when
// the reply, or the end, was seen.
type Wait struct {
	Target string
	For    string // "the connection", a command's verb, or "the final dot"
	Span   Span
	End    string // the reply's code, or what came in its place
}

func (w Wait) String() string {
	return fmt.Sprintf("%s waited %.1f s for the reply to %s, from %s: %s",
		w.Target, w.Span.To.Sub(w.Span.From).Seconds(), w.For, w.Span.From.Format("15:04:05.000"), w.End)
}

// Late returns the waits that lasted longer than limit and are no fault of the client
// or of what lay between. away says when nothing could be heard of a target, nor it
// hear anything, or when the client itself stood still. What a wait has in common
// with these is excused twice: a segment that was lost is sent again after twice the
// time (RFC 6298 section 5.5), and so a command may lie that long again before the
// server reads it.
func Late(waits []Wait, limit time.Duration, away func(target string) []Span) []Wait {
	var late []Wait
	for _, w := range waits {
		excused := time.Duration(0)
		for _, s := range away(w.Target) {
			excused += 2 * w.Span.overlap(s)
		}
		if w.Span.To.Sub(w.Span.From) > limit+excused {
			late = append(late, w)
		}
	}
	return late
}
