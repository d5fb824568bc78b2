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

// Lines of real logs, and what they say.
func TestParseDelivery(t *testing.T) {
	for _, c := range []struct {
		make Make
		line string
		want Delivery
	}{
		{Postfix, `Nov 30 10:00:01 host peer/smtp[99]: 4B1234: to=<u+1@example.test>, relay=mx.holdfast.test[10.77.0.12]:2525, delay=0.2, delays=0.1/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 queued as 01M8)`,
			Delivery{"4B1234", "u+1@example.test", "mx.holdfast.test[10.77.0.12]:2525", Sent, "250 2.0.0 queued as 01M8"}},
		{Postfix, `Nov 30 10:00:01 host peer/smtp[99]: 4B1234: to=<u+1@example.test>, relay=mx[10.77.0.12]:2525, delay=9, delays=0/0/0/9, dsn=4.4.2, status=deferred (lost connection with mx[10.77.0.12] while sending end of data -- message may be sent more than once)`,
			Delivery{"4B1234", "u+1@example.test", "mx[10.77.0.12]:2525", Unsure, "lost connection with mx[10.77.0.12] while sending end of data -- message may be sent more than once"}},
		{Postfix, `Nov 30 10:00:01 host peer/smtp[99]: 4B1234: conversation with mx[10.77.0.12] timed out while sending end of data -- message may be sent more than once`,
			Delivery{QueueID: "4B1234", Status: Unsure, Reply: "conversation with mx[10.77.0.12] timed out while sending end of data -- message may be sent more than once"}},
		{Exim, `2026-11-30 10:04:02 1xXyEi-0000Ip-1s => U+1@example.test R=away T=away H=10.77.0.12 [10.77.0.12] C="250 2.0.0 queued as 01M8"`,
			Delivery{"1xXyEi-0000Ip-1s", "U+1@example.test", "10.77.0.12 [10.77.0.12]", Sent, "250 2.0.0 queued as 01M8"}},
		{Exim, `2026-11-30 10:04:02 1xXyEi-0000Ip-1s => u.name+1@example.test <U.NAME+1@example.test> R=away T=away H=10.77.0.12 [10.77.0.12] C="250 fine"`,
			Delivery{"1xXyEi-0000Ip-1s", "U.NAME+1@example.test", "10.77.0.12 [10.77.0.12]", Sent, "250 fine"}},
		{Exim, `2026-11-30 10:04:02 1xXyEi-0000Ip-1s -> v+1@example.test R=away T=away H=10.77.0.12 [10.77.0.12] C="250 2.0.0 queued as 01M8"`,
			Delivery{"1xXyEi-0000Ip-1s", "v+1@example.test", "10.77.0.12 [10.77.0.12]", Sent, "250 2.0.0 queued as 01M8"}},
		{Exim, `2026-11-30 10:04:02 1xXyEi-0000Ip-1s == u+1@example.test R=away T=away defer (111): Connection refused`,
			Delivery{QueueID: "1xXyEi-0000Ip-1s", Recipient: "u+1@example.test", Status: Deferred, Reply: "R=away T=away defer (111): Connection refused"}},
	} {
		got, ok := c.make.ParseDelivery(c.line)
		if !ok || got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.line, got, c.want)
		}
	}
	for _, line := range []string{"", `2026-11-30 10:04:02 1xXyEi-0000Ip-1s Completed`, `2026-11-30 10:04:02 1xXyEi-0000Ip-1s H=mx [10.77.0.12] SMTP error from remote mail server after end of data: 451 no`} {
		if d, ok := Exim.ParseDelivery(line); ok {
			t.Errorf("%q says %+v", line, d)
		}
	}
	for reply, id := range map[string]string{"250 2.0.0 Ok: queued as 4B1234": "4B1234", "250 OK id=1xXyEi-0000Ip-1s": "1xXyEi-0000Ip-1s", "250 fine": ""} {
		if got := QueueIDOf(reply); got != id {
			t.Errorf("%q names %q", reply, got)
		}
	}
}
