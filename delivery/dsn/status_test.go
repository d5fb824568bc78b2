package dsn

import (
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestStatus: the next hop's enhanced code, else what its basic code means, and
// always of a class that fits the action (RFC 3464 sections 2.3.3 and 2.3.4).
func TestStatus(t *testing.T) {
	type code = mail.EnhancedCode
	for _, test := range []struct {
		kind     Kind
		reply    int
		enhanced code
		want     code
	}{
		{Failure, 550, code{5, 1, 1}, code{5, 1, 1}},
		{Failure, 550, code{}, code{5, 0, 0}},
		{Failure, 554, code{}, code{5, 0, 0}},
		{Failure, 551, code{}, code{5, 1, 6}},
		{Failure, 552, code{}, code{5, 2, 2}},
		{Failure, 553, code{}, code{5, 1, 3}},
		{Failure, 555, code{}, code{5, 5, 4}},
		{Failure, 556, code{}, code{5, 1, 10}},
		{Failure, 599, code{}, code{5, 0, 0}},
		{Failure, 0, code{}, code{5, 0, 0}},
		{Failure, 0, code{5, 4, 6}, code{5, 4, 6}}, // our own verdict
		{Failure, 550, code{4, 1, 1}, code{5, 0, 0}},
		{Failure, 550, code{5, 1, 1000}, code{5, 0, 0}},
		{Failure, 550, code{5, -1, 1}, code{5, 0, 0}},
		{Failure, 550, code{7, 1, 1}, code{5, 0, 0}},
		{Failure, 250, code{2, 1, 5}, code{5, 0, 0}},
		{Failure, -5, code{}, code{5, 0, 0}},

		{Expired, 0, code{}, code{4, 4, 7}},
		{Expired, 451, code{4, 7, 1}, code{4, 7, 1}},
		{Expired, 452, code{}, code{4, 3, 1}},
		{Expired, 421, code{}, code{4, 3, 2}},
		{Expired, 432, code{}, code{4, 4, 7}},
		{Expired, 250, code{2, 0, 0}, code{4, 4, 7}},
		{Expired, 250, code{2, 1, 5}, code{4, 4, 7}},
		{Expired, 0, code{4, 4, 1}, code{4, 4, 1}},

		{Delay, 450, code{4, 2, 1}, code{4, 2, 1}},
		{Delay, 450, code{}, code{4, 2, 0}},
		{Delay, 455, code{}, code{4, 5, 4}},
		{Delay, 0, code{}, code{4, 0, 0}},
		{Delay, 552, code{5, 2, 2}, code{4, 0, 0}}, // deferred all the same: RFC 5321 section 4.5.3.1.10
		{Delay, 0, code{4, 4, 1}, code{4, 4, 1}},

		{Relayed, 250, code{2, 1, 5}, code{2, 1, 5}},
		{Relayed, 250, code{}, code{2, 0, 0}},
		{Relayed, 250, code{5, 0, 0}, code{2, 0, 0}},
		{Relayed, 0, code{}, code{2, 0, 0}},
	} {
		if got := status(test.kind, mail.Reply{Code: test.reply, Enhanced: test.enhanced}); got != test.want {
			t.Errorf("%s, %d %v: %v, want %v", test.kind, test.reply, test.enhanced, got, test.want)
		}
	}
}

// TestRemoteNames: what is no host is not named.
func TestRemoteNames(t *testing.T) {
	for in, want := range map[string]string{
		"mail.example.test": "mail.example.test", "MAIL.Example.test": "mail.example.test", "bücher.test": "xn--bcher-kva.test",
		"192.0.2.1": "[192.0.2.1]", "2001:db8::1": "[IPv6:2001:db8::1]", "fe80::1%eth0": "[IPv6:fe80::1]", "::ffff:192.0.2.1": "[192.0.2.1]",
		"": "", "a b": "", "a\r\nX: y": "", "mail.example.test.": "mail.example.test", "mail.example.test:25": "",
	} {
		if got := remoteName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
