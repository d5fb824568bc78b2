package smtpd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
)

// TestOutcomes maps what Submit says to what the client reads. "" stands for a
// close with no octet written: RFC 5321 section 4.2.5 forbids to deliver what
// was answered 4yz, so a 4yz is said only of what was never appended.
func TestOutcomes(t *testing.T) {
	cases := []struct {
		name    string
		err     error
		reply   string
		unknown uint64
	}{
		{"accepted", nil, "250 2.0.0 queued as 00000000010000000000000000", 0},
		{"never appended", fmt.Errorf("propose: %w", smtpd.ErrNotAccepted), "451 4.3.0", 0},
		{"envelope too long", fmt.Errorf("propose: %w", smtpd.ErrTooManyRecipients), "452 4.5.3", 0},
		{"disk low", smtpd.ErrDiskLow, "452 4.3.1", 0},
		{"unknown", fmt.Errorf("propose: %w", smtpd.ErrOutcomeUnknown), "", 1},
		{"unknown, then refused", errors.Join(smtpd.ErrOutcomeUnknown, smtpd.ErrNotAccepted), "", 1},
		{"refused, then unknown", fmt.Errorf("%w after %w", smtpd.ErrNotAccepted, smtpd.ErrOutcomeUnknown), "", 1},
		{"patience over", context.DeadlineExceeded, "", 1},
		{"stopping", context.Canceled, "", 1},
		{"an error that nobody foresaw", errors.New("10.1.2.3: disk /dev/sda1 is on fire"), "", 1},
	}
	for _, encrypted := range []bool{false, true} {
		for _, test := range cases {
			t.Run(fmt.Sprintf("%s, tls %v", test.name, encrypted), func(t *testing.T) {
				t.Parallel()
				q := newFakeQueue()
				q.submit = func(context.Context, mail.QueueID) error { return test.err }
				s, addr := start(t, q, withTLS(t))
				c := dial(t, addr)
				c.hello()
				wire := c.conn
				if encrypted {
					c.startTLS()
					c.do("EHLO c.example", "250 ")
				}
				c.do("MAIL FROM:<>", "250 ")
				c.do("RCPT TO:<b@example.test>", "250 ")
				c.do("DATA", "354 ")
				c.send("text\r\n.\r\n")
				if test.reply == "" {
					if encrypted { // Not even close_notify: look below TLS.
						n, _ := wire.Read(make([]byte, 1))
						if n != 0 {
							t.Fatal("something was written")
						}
					} else {
						c.expectSilentEnd()
					}
				} else {
					c.expect(test.reply)
					c.do("NOOP", "250 ")
				}
				if got := s.Stats().AcceptUnknown.Load(); got != test.unknown {
					t.Fatalf("accept_unknown %d, want %d", got, test.unknown)
				}
			})
		}
	}
}

// TestPanics: the client reads a generic text, and a panic in Submit is an
// unknown outcome.
func TestPanics(t *testing.T) {
	q := newFakeQueue()
	s, addr := start(t, q, nil)
	q.panics = true
	c := dial(t, addr)
	c.hello()
	c.do("MAIL FROM:<>", "250 ")
	c.do("RCPT TO:<b@example.test>", "421 4.3.0 Internal error, closing")
	c.expectSilentEnd()

	q = newFakeQueue()
	q.submit = func(context.Context, mail.QueueID) error { panic("told to") }
	s, addr = start(t, q, nil)
	c = dial(t, addr)
	c.toData()
	c.send("text\r\n.\r\n")
	c.expectSilentEnd()
	if s.Stats().AcceptUnknown.Load() != 1 || s.Stats().Panics.Load() != 1 {
		t.Fatal("not counted")
	}
}
