package dsn

import (
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestXtext: RFC 3461 section 4.
func TestXtext(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "abc": "abc", "a+2Bb": "a+b", "+3D+20": "= ", "a+2bb": "a+b",
	} {
		if got, ok := decodeXtext(in); !ok || got != want {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
	for _, in := range []string{"+", "a+2", "+G0", "+-1", "+0A", "+7F", "+FF", "a\nb", "ü"} {
		if got, ok := decodeXtext(in); ok {
			t.Errorf("%q is decoded as %q", in, got)
		}
	}
	if got := envelopeID("a+0Ab"); got != "a+0Ab" {
		t.Errorf("what decodes to a line end becomes %q", got)
	}
}

// TestOriginalRecipients: RFC 3461 section 6.3 d and RFC 6533 section 3.
func TestOriginalRecipients(t *testing.T) {
	for _, test := range []struct{ in, narrow, wide string }{
		{"rfc822;bob@example.test", "rfc822; bob@example.test", "rfc822; bob@example.test"},
		{"RFC822;a+2Bb@example.test", "RFC822; a+b@example.test", "RFC822; a+b@example.test"},
		{"rfc822;+0Ax", "rfc822; +0Ax", "rfc822; +0Ax"},
		{"x400;/c=de+3B", "x400; /c=de;", "x400; /c=de;"},
		{`utf-8;b\x{FC}ro@example.test`, `utf-8; b\x{FC}ro@example.test`, "utf-8; büro@example.test"},
		{`UTF-8;b\x{FC}\x{2B}\x{5C}@example.test`, `UTF-8; b\x{FC}\x{2B}\x{5C}@example.test`, `UTF-8; bü+\@example.test`},
		{"utf-8;büro@example.test", `utf-8; b\x{FC}ro@example.test`, "utf-8; büro@example.test"},
		{`utf-8;a\x{A}b`, `utf-8; a\x{A}b`, `utf-8; a\x{A}b`},
		{`utf-8;a\x{202E}b`, `utf-8; a\x{202E}b`, `utf-8; a\x{202E}b`},
		{`utf-8;a\x{D800}b`, `utf-8; a\x{D800}b`, `utf-8; a\x{D800}b`},
		{`utf-8;a\x{FC`, `utf-8; a\x{FC`, `utf-8; a\x{FC`},
		{`utf-8;a\xFC`, `utf-8; a\xFC`, `utf-8; a\xFC`},
		{"bob@example.test", "", ""},
		{";bob@example.test", "", ""},
		{"rfc 822;bob@example.test", "", ""},
		{"rfc822\r\nX:;bob@example.test", "", ""},
		{"ü;bob@example.test", "", ""},
		{"", "", ""},
	} {
		for _, wide := range []bool{false, true} {
			want := test.narrow
			if wide {
				want = test.wide
			}
			got, ok := originalRecipient(test.in, wide)
			if ok != (want != "") || got != want {
				t.Errorf("%q, wide %v: %q, %v, want %q", test.in, wide, got, ok, want)
			}
		}
	}
}

// TestFinalRecipients: RFC 3464 section 2.3.2, to the letter, and RFC 6533 section 4.1.
func TestFinalRecipients(t *testing.T) {
	for _, test := range []struct{ local, narrow, wide string }{
		{"Bob", "rfc822; Bob@example.test", "rfc822; Bob@example.test"},
		{`"a  b"`, `rfc822; "a  b"@example.test`, `rfc822; "a  b"@example.test`},
		{"büro", `utf-8; b\x{FC}ro@example.test`, "utf-8; büro@example.test"},
		{"a\r\nb", `utf-8; a\x{0D}\x{0A}b@example.test`, `utf-8; a\x{0D}\x{0A}b@example.test`},
		{"a\u0085b", `utf-8; a\x{85}b@example.test`, `utf-8; a\x{85}b@example.test`},
		{`"ü \+="`, `utf-8; "\x{FC}\x{20}\x{5C}\x{2B}\x{3D}"@example.test`, `utf-8; "ü \+="@example.test`},
	} {
		if got := finalRecipient(recipient(test.local), false); got != test.narrow {
			t.Errorf("%q: %q, want %q", test.local, got, test.narrow)
		}
		if got := finalRecipient(recipient(test.local), true); got != test.wide {
			t.Errorf("%q: %q, want %q", test.local, got, test.wide)
		}
	}
	bare := mail.Recipient{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: "Postmaster"}}, Domain: "example.test"}
	if got := finalRecipient(bare, false); got != "rfc822; Postmaster@example.test" {
		t.Errorf("the bare postmaster is %q", got)
	}
}
