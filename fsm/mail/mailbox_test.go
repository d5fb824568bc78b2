package mail

import (
	"errors"
	"strings"
	"testing"
)

func TestForwardPaths(t *testing.T) {
	long := strings.Repeat("a", 64)
	label := strings.Repeat("d", 63)
	domain255 := strings.Repeat(label+".", 3) + strings.Repeat("e", 63)
	for _, test := range []struct {
		in   string
		utf8 bool
		want string // Local@Host, or "" for an error
		err  error
	}{
		{in: "bob@example.test", want: "bob@example.test"},
		{in: "Bob.Smith+tag@Example.TEST", want: "Bob.Smith+tag@Example.TEST"},
		{in: "!#$&'*+-/=?^_`{|}~@example.test", err: ErrAddressRouting}, // the ! asks to be routed
		{in: "#$&'*+-/=?^_`{|}~@example.test", want: "#$&'*+-/=?^_`{|}~@example.test"},
		{in: "postmaster@example.test", want: "postmaster@example.test"},

		// Not mailboxes: RFC 5321 section 4.1.2.
		{in: "", err: ErrAddressSyntax},
		{in: "bob", err: ErrAddressSyntax},
		{in: "@example.test", err: ErrAddressSyntax},
		{in: "bob@", err: ErrAddressSyntax},
		{in: ".bob@example.test", err: ErrAddressSyntax},
		{in: "bob.@example.test", err: ErrAddressSyntax},
		{in: "b..ob@example.test", err: ErrAddressSyntax},
		{in: "b ob@example.test", err: ErrAddressSyntax},
		{in: "bob@exa mple.test", err: ErrAddressSyntax},
		{in: "bob@example..test", err: ErrAddressSyntax},
		{in: "bob@-example.test", err: ErrAddressSyntax},
		{in: "bob@example.test.", err: ErrAddressSyntax},
		{in: "bob@exam(ple).test", err: ErrAddressSyntax},
		{in: "<bob@example.test>", err: ErrAddressSyntax},
		{in: "bob@example.test> NOTIFY=NEVER", err: ErrAddressSyntax},

		// No control character gets onto a command line.
		{in: "bob\r\n@example.test", err: ErrAddressSyntax},
		{in: "bob@example.test\r\nDATA", err: ErrAddressSyntax},
		{in: "bo\x00b@example.test", err: ErrAddressSyntax},
		{in: "\"bo\tb\"@example.test", err: ErrAddressSyntax},
		{in: "bo\x7fb@example.test", err: ErrAddressSyntax},
		{in: "bo\xffb@example.test", utf8: true, err: ErrAddressSyntax},

		// Lengths: RFC 5321 sections 4.5.3.1.1 to 4.5.3.1.3.
		{in: long + "@example.test", want: long + "@example.test"},
		{in: long + "a@example.test", err: ErrAddressSyntax},
		{in: "b@" + domain255[:252], want: "b@" + domain255[:252]},
		{in: "b@" + domain255[:253], err: ErrAddressSyntax},
		{in: "b@" + label + "d.test", err: ErrAddressSyntax},
		{in: strings.Repeat("a@", 200) + "b", err: ErrAddressSyntax},

		// Routing in the local part: what a primary that trusts its backup would
		// obey. With and without quotes, and behind a quoted pair.
		{in: "user%ext.test@example.test", err: ErrAddressRouting},
		{in: "ext.test!user@example.test", err: ErrAddressRouting},
		{in: "user@ext.test@example.test", err: ErrAddressRouting},
		{in: `"user@ext.test"@example.test`, err: ErrAddressRouting},
		{in: `"user%ext.test"@example.test`, err: ErrAddressRouting},
		{in: `"ext.test!user"@example.test`, err: ErrAddressRouting},
		{in: `"user\@ext.test"@example.test`, err: ErrAddressRouting},
		{in: `"user\%ext.test"@example.test`, err: ErrAddressRouting},
		{in: `user%ext.test@[192.0.2.1]`, err: ErrAddressLiteral},
		{in: `user@ext.test@[192.0.2.1]`, err: ErrAddressLiteral},
		{in: `"user@ext.test"`, err: ErrAddressSyntax},
		{in: `"user"@ext.test@example.test`, err: ErrAddressRouting},
		{in: `user%ext.test@`, err: ErrAddressSyntax},
		{in: `ext.test!user`, err: ErrAddressSyntax},

		// A source route is stripped, and the final mailbox judged: RFC 5321
		// section 4.1.1.3.
		{in: "@relay.test:bob@example.test", want: "bob@example.test"},
		{in: "@relay.test,@other.test:bob@example.test", want: "bob@example.test"},
		{in: "@example.test:user@ext.test", want: "user@ext.test"},
		{in: "@example.test:user%ext.test@example.test", err: ErrAddressRouting},
		{in: "@example.test", err: ErrAddressSyntax},
		{in: "@example.test:", err: ErrAddressSyntax},

		// Address literals are nobody's relay domain.
		{in: "bob@[127.0.0.1]", err: ErrAddressLiteral},
		{in: "bob@[IPv6:::1]", err: ErrAddressLiteral},
		{in: "bob@[127.0.0.1", err: ErrAddressSyntax},
		{in: "bob@[a b]", err: ErrAddressSyntax},

		// Quoted local parts stay as they are, or lose quotes they do not need.
		{in: `"john smith"@example.test`, want: `"john smith"@example.test`},
		{in: `"bob"@example.test`, want: "bob@example.test"},
		{in: `"b\ob"@example.test`, want: "bob@example.test"},
		{in: `"a\"b"@example.test`, want: `"a\"b"@example.test`},
		{in: `"a\\b"@example.test`, want: `"a\\b"@example.test`},
		{in: `"a..b"@example.test`, want: `"a..b"@example.test`},
		{in: `"> NOTIFY=NEVER"@example.test`, want: `"> NOTIFY=NEVER"@example.test`},
		{in: `"a"b"@example.test`, err: ErrAddressSyntax},
		{in: `"a\"@example.test`, err: ErrAddressSyntax},
		{in: `"a@example.test`, err: ErrAddressSyntax},
		{in: `""@example.test`, err: ErrAddressSyntax},
		{in: `"`, err: ErrAddressSyntax},
		{in: `"@example.test`, err: ErrAddressSyntax},

		// Non-ASCII needs SMTPUTF8: RFC 6531 section 3.3.
		{in: "büro@example.test", err: ErrAddressUTF8},
		{in: "bob@exämple.test", err: ErrAddressUTF8},
		{in: "büro@example.test", utf8: true, want: "büro@example.test"},
		{in: "bob@exämple.test", utf8: true, want: "bob@exämple.test"},
		{in: "bü%x@example.test", utf8: true, err: ErrAddressRouting},
	} {
		p, err := ParseForwardPath(test.in, test.utf8)
		if !errors.Is(err, test.err) || test.err == nil && err != nil {
			t.Errorf("%q: error %v, want %v", test.in, err, test.err)
			continue
		}
		if got := p.String(); got != test.want {
			t.Errorf("%q: %q, want %q", test.in, got, test.want)
		}
	}
}

// TestForwardPathsAreStable: what was let through is let through again, and is
// the same; so every node and the primary see one mailbox.
func TestForwardPathsAreStable(t *testing.T) {
	for _, in := range []string{`"bob"@example.test`, `"john smith"@example.test`, `"a\"b"@X.test`, "@r.test:bob@example.test"} {
		p, err := ParseForwardPath(in, false)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseForwardPath(p.String(), false)
		if err != nil || again != p {
			t.Errorf("%q: %q, then %q, %v", in, p, again, err)
		}
	}
}

func TestReversePaths(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"bob@example.test":             "bob@example.test",
		"@relay.test:bob@example.test": "bob@example.test",
		"bob@[192.0.2.1]":              "bob@[192.0.2.1]", // a bounce to a literal is nobody's relay
		"user%other@example.test":      "user%other@example.test",
		"prvs=12ab=bob@example.test":   "prvs=12ab=bob@example.test",
		"list-owner+x=y.test@l.test":   "list-owner+x=y.test@l.test",
		`"john smith"@example.test`:    `"john smith"@example.test`,
	} {
		p, err := ParseReversePath(in, false)
		if err != nil || p.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, p, err, want)
		}
		if p.IsNull() != (in == "") {
			t.Errorf("%q: null is %v", in, p.IsNull())
		}
	}
	for in, want := range map[string]error{
		"bob":                           ErrAddressSyntax,
		"a@b@c.test":                    ErrAddressRouting,
		"büro@example.test":             ErrAddressUTF8,
		"bob@example.test\r\nRCPT TO:x": ErrAddressSyntax,
		" ":                             ErrAddressSyntax,
	} {
		if p, err := ParseReversePath(in, false); !errors.Is(err, want) {
			t.Errorf("%q: %q, %v, want %v", in, p, err, want)
		}
	}
}

func TestMailboxes(t *testing.T) {
	if d := (Mailbox{"bob", "EXämple.TEST"}).Domain(); d != "xn--exmple-cua.test" {
		t.Errorf("domain %q", d)
	}
	if d := (Mailbox{"bob", "[192.0.2.1]"}).Domain(); d != "" {
		t.Errorf("domain of a literal %q", d)
	}
	if s := (Mailbox{"postmaster", ""}).String(); s != "postmaster" {
		t.Errorf("without host %q", s)
	}
	if !(Mailbox{"bü", "x.test"}).NeedsUTF8() || !(Mailbox{"b", "ü.test"}).NeedsUTF8() || (Mailbox{"b", "x.test"}).NeedsUTF8() {
		t.Error("who needs SMTPUTF8 is mistaken")
	}
}

func TestDomains(t *testing.T) {
	for in, want := range map[string]Domain{
		"example.test": "example.test", "EXAMPLE.Test": "example.test", "a": "a", "xn--exmple-cua.test": "xn--exmple-cua.test",
		"exämple.test": "xn--exmple-cua.test", "_dmarc.x.test": "_dmarc.x.test", "1.test": "1.test",
	} {
		if got, err := ParseDomain(in); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "a.", ".a", "a..b", "-a.test", "a-.test", "a b.test", "a@b.test", "[192.0.2.1]", "a\x00.test", "a/b.test",
		strings.Repeat("a", 64) + ".test", strings.Repeat("abcdefg.", 32) + "test", "ä\xff.test", "*.test",
	} {
		if got, err := ParseDomain(in); err == nil {
			t.Errorf("%q is read as %q", in, got)
		}
	}
}

// FuzzForwardPath: what is let through can stand on a command line, is stable,
// and asks nobody to relay.
func FuzzForwardPath(f *testing.F) {
	for _, s := range []string{"bob@example.test", `"a b"@x.test`, "@a:b@c.test", "a%b@c.test", "ü@ä.test"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, utf8Allowed bool) {
		p, err := ParseForwardPath(s, utf8Allowed)
		if err != nil {
			return
		}
		out := p.String()
		if strings.ContainsFunc(out, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q: control character in %q", s, out)
		}
		if strings.ContainsAny(p.Local, "@%!") {
			t.Errorf("%q: routing in %q", s, p.Local)
		}
		if p.Domain() == "" || !utf8Allowed && p.NeedsUTF8() {
			t.Errorf("%q: %q", s, out)
		}
		if !isDotString(p.Local) && !isQuotedString(p.Local) {
			t.Errorf("%q: %q would end the path", s, p.Local)
		}
		if again, err := ParseForwardPath(out, utf8Allowed); err != nil || again != p {
			t.Errorf("%q: %q, then %q, %v", s, out, again, err)
		}
	})
}
