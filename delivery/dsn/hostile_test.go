package dsn

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestHostileReplies: whatever a next hop says stays in its field, on its lines.
func TestHostileReplies(t *testing.T) {
	for _, text := range []string{
		"x\r\nBcc: victim@example.test\r\n\r\nbody", "x\n\nFinal-Recipient: rfc822; victim@example.test", "x\rY: z", "a\x00b\x1b[31m\x7f", "\u2028\u202e\u0085",
		"\xff\xfe\xfd", strings.Repeat("a", 5000), strings.Repeat("a ", 5000), strings.Repeat(" ", 5000), "Büro", "", "--=_" + queueID(2).String() + "_000000",
	} {
		for _, global := range []bool{false, true} {
			r := sample(Failure)
			r.Original.Envelope.SMTPUTF8 = global
			r.Fates[0].Reply.Text, r.Fates[0].Remote = text, text
			m, ok := Compose(r)
			if !ok {
				t.Fatal("no report")
			}
			p := parse(t, r, m)
			if got := p.recipients[0].Get("Final-Recipient"); got != "rfc822; bob@example.test" {
				t.Errorf("%q: final recipient %q", text, got)
			}
			if got := p.recipients[0].Get("Diagnostic-Code"); !strings.HasPrefix(got, "smtp; 550 5.1.1") {
				t.Errorf("%q: diagnostic code %q", text, got)
			}
			if !global && !isASCII([]byte(p.recipients[0].Get("Diagnostic-Code"))) {
				t.Errorf("%q: %q", text, p.recipients[0].Get("Diagnostic-Code"))
			}
		}
	}
}

// TestClean: what is left of a reply is one line that reads from left to right.
func TestClean(t *testing.T) {
	for in, want := range map[string][2]string{ // narrow, wide
		"no such user":        {"no such user", "no such user"},
		"  a\r\n\tb ":         {"a b", "a b"},
		"a\x00\x1b[1m\x7f":    {"a??[1m?", "a??[1m?"},
		"\u202ea\u2028\u0085": {"?a??", "?a??"},
		"Büro\xff":            {"B?ro?", "Büro?"},
	} {
		for i, wide := range []bool{false, true} {
			if got := clean(in, wide); got != want[i] {
				t.Errorf("%q, wide %v: %q, want %q", in, wide, got, want[i])
			}
		}
	}
}

// TestHostileEnvelopes: parameters and addresses that nobody should have let
// in, and some that are odd and right.
func TestHostileEnvelopes(t *testing.T) {
	for _, local := range []string{
		`"a b"`, `"a\"b"`, `"a@b"`, `">, <x"`, "a\r\nX: y", "\"a\r\n\r\nAction: delivered\"", "a\x00", "ü", "\xff", strings.Repeat("ü", 5000), strings.Repeat(" ", 2000), "",
	} {
		for _, parameter := range []string{"", "rfc822;" + local, "utf-8;" + local, local, "a+0D+0AX:+20y", "utf-8;a\\x{D}\\x{A}X", "rfc822;+", "utf-8;\\x{", "utf-8;\\x{110000}"} {
			for _, global := range []bool{false, true} {
				r := sample(Failure)
				r.Original.Envelope.SMTPUTF8 = global
				r.Original.Envelope.Recipients[0].Path.Local = local
				r.Original.Envelope.Recipients[0].Original = parameter
				r.Original.Envelope.EnvelopeID = parameter
				m, ok := Compose(r)
				if !ok {
					t.Fatal("no report")
				}
				p := parse(t, r, m)
				if len(p.recipients) != 1 || p.recipients[0].Get("Action") != "failed" {
					t.Errorf("local part %q, parameter %q: %v", local, parameter, p.recipients)
				}
			}
		}
	}
}

// TestSendersToTheLetter: a report goes to the very mailbox, quoted as it has
// to be.
func TestSendersToTheLetter(t *testing.T) {
	for _, sender := range []string{`"john smith"@client.test`, `"a\"b"@client.test`, `">, <x"@client.test`, `"a@b"@client.test`, "prvs=12ab=bob@client.test", "user%other@client.test", "Bob@Client.TEST"} {
		from, err := mail.ParseReversePath(sender, false)
		if err != nil {
			t.Fatal(err)
		}
		r := sample(Failure)
		r.Original.Envelope.From = from
		m, ok := Compose(r)
		if !ok {
			t.Errorf("%s: %v", sender, Judge(r))
			continue
		}
		if got := parse(t, r, m).header.Get("To"); got != "<"+sender+">" {
			t.Errorf("%s: To %s", sender, got)
		}
	}
}

// TestHostileHeaders: a report stays within its limits whatever the header is,
// and the time it takes grows no faster than the header.
func TestHostileHeaders(t *testing.T) {
	lines := strings.Repeat("X: y\r\n", 100_000)
	for what, content := range map[string]string{
		"100,000 lines":            lines + "\r\n",
		"100,000 continuations":    "List-X:\r\n" + strings.Repeat(" y\r\n", 100_000) + "\r\n",
		"100,000 lists":            strings.Repeat("List-X: y\r\n", 100_000) + "\r\n",
		"100,000 that are no line": strings.Repeat("\x00\xff\r\n", 100_000) + "\r\n",
		"one long line":            "X: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
		"no line end":              strings.Repeat("a", 1<<20),
		"line ends":                strings.Repeat("\r\n", 1<<19),
		"CR":                       strings.Repeat("\r", 1<<20),
		"NUL":                      strings.Repeat("\x00", 1<<20),
		"boundaries":               strings.Repeat("--=_"+queueID(2).String()+"_000000\r\n", 10_000),
		"folded garbage":           " \r\n\t\r\n \x00\r\n:\r\n : \r\nX\r\n Y: z\r\n\r\n",
	} {
		for _, full := range []bool{false, true} {
			r := sample(Failure)
			r.Original.Content, r.Original.Size = []byte(content), mail.ByteSize(len(content))
			if full {
				r.Original.Envelope.Return = mail.ReturnFull
			}
			Judge(r)
			m := r.write() // also where the rules would have none
			if size := len(m.Content); size > 3*returnedHeaderBytesMax+8<<10 && len(content) > int(ContentBytesMax) {
				t.Errorf("%s: %d octets", what, size)
			}
			checkOctets(t, m)
		}
	}
}

// TestLongHeadersAreCut: what is returned of a long header ends with a line.
func TestLongHeadersAreCut(t *testing.T) {
	r := sample(Failure)
	content := "Subject: x\r\n" + strings.Repeat("X: 0123456789\r\n", 8000) + "\r\nbody\r\n"
	r.Original.Content, r.Original.Size = []byte(content), mail.ByteSize(len(content))
	m, ok := Compose(r)
	if !ok {
		t.Fatal(Judge(r))
	}
	p := parse(t, r, m)
	if len(p.third) > returnedHeaderBytesMax || len(p.third) < returnedHeaderBytesMax-20 || !strings.HasSuffix(p.third, "X: 0123456789\r\n") {
		t.Errorf("%d octets, at the end %q", len(p.third), p.third[len(p.third)-20:])
	}
	if !strings.Contains(strings.Join(strings.Fields(p.text), " "), "the first part of your message's header") {
		t.Errorf("the text does not say that it is cut: %s", p.text)
	}
}

// TestThousandRecipients: each has its group, in order.
func TestThousandRecipients(t *testing.T) {
	r := sample(Failure)
	r.Original.Envelope.Recipients, r.Fates = nil, nil
	for i := range 1000 {
		to := recipient(fmt.Sprintf("user%d", i))
		to.Original = fmt.Sprintf("rfc822;original%d@example.test", i)
		r.Original.Envelope.Recipients = append(r.Original.Envelope.Recipients, to)
		r.Fates = append(r.Fates, Fate{Recipient: i, Reply: mail.Reply{Code: 550, Text: strings.Repeat("x", 512)}, Remote: "mail.example.test"})
	}
	m, ok := Compose(r)
	if !ok {
		t.Fatal(Judge(r)[0])
	}
	for i, group := range parse(t, r, m).recipients {
		if want := fmt.Sprintf("rfc822; user%d@example.test", i); group.Get("Final-Recipient") != want {
			t.Fatalf("recipient %d is %s", i, group.Get("Final-Recipient"))
		}
	}
}

// TestBoundaries: what is returned may hold what the boundary would have been.
func TestBoundaries(t *testing.T) {
	plain, _ := Compose(sample(Failure))
	if !bytes.Contains(plain.Content, []byte("=_"+queueID(2).String()+"_000000")) {
		t.Fatal("the boundary is made in another way than this test knows")
	}
	r := sample(Failure)
	r.Original.Envelope.Return = mail.ReturnFull
	var b strings.Builder
	b.WriteString("Subject: x\r\n\r\n")
	for n := range 20 {
		fmt.Fprintf(&b, "--=_%s_%06d\r\nContent-Type: text/plain\r\n\r\nnot a part\r\n--=_%s_%06d--\r\n", r.ID, n, r.ID, n)
	}
	r.Original.Content = []byte(b.String())
	r.Original.Size = mail.ByteSize(b.Len())
	m, ok := Compose(r)
	if !ok {
		t.Fatal(Judge(r))
	}
	if p := parse(t, r, m); p.third != b.String() {
		t.Errorf("returned %q", p.third)
	}
	if strings.Count(string(m.Content), "_000020") != 5 {
		t.Error("another boundary than the least that is free")
	}
}

// FuzzReport: whatever comes in, a report that is made reads back as one
// multipart/report of three parts, with all that parse looks for; and it is made
// whole also where the rules would have none.
func FuzzReport(f *testing.F) {
	add := func(content, local, host, to, reply, envid, orcpt string, flags uint16) {
		f.Add([]byte(content), local, host, to, reply, envid, orcpt, flags)
	}
	add(letter, "alice", "client.test", "bob", "no such user", "QQ+2B314", "rfc822;bob@example.test", 1)
	add("Auto-Submitted: no\r\n X\r\n\r\n", `"a b"`, "client.test", `"x"`, "a\r\n\r\nb", "+0D", "utf-8;\\x{FC}", 0xffff)
	add("--=_"+queueID(2).String()+"_000000\r\n\r\n", "ü", "ü.test", "ü", "ü", "ü", "utf-8;ü", 0x0f0f)
	add("\r\n\r\n", "a", "client.test", "", "", "", ";", 0)
	add("X: "+strings.Repeat("a", 2000)+"\r\n.\r\n", "a", "client.test", "b", strings.Repeat("b", 2000), strings.Repeat("c", 2000), strings.Repeat("d", 2000), 0x10)
	f.Fuzz(func(t *testing.T, content []byte, local, host, to, reply, envid, orcpt string, flags uint16) {
		bit := func(n int) bool { return flags>>n&1 == 1 }
		r := sample(Kind(1 + flags&3))
		e := &r.Original.Envelope
		e.From = mail.ReversePath{Mailbox: mail.Mailbox{Local: local, Host: host}}
		e.SMTPUTF8, e.EnvelopeID, e.Return = bit(2), envid, mail.Return(flags>>3&3%3)
		e.Recipients = append(e.Recipients, recipient(to))
		e.Recipients[1].Original, e.Recipients[1].Notify = orcpt, mail.Notify(flags>>5&15)
		r.Original.Content, r.Original.Size = content, mail.ByteSize(len(content))
		if bit(9) {
			r.Original.Size++
		}
		r.Original.PossibleDuplicate = bit(10)
		r.Fates[0].Reply = mail.Reply{Code: 200 + int(flags>>6), Enhanced: mail.EnhancedCode{int(flags >> 11 & 7), int(flags) - 100, 1}, Text: reply}
		r.Fates[0].Remote, r.Fates[0].RetryUntil = host, int64(flags)<<40
		r.Fates = append(r.Fates, Fate{Recipient: 1, Reply: r.Fates[0].Reply})
		if bit(11) {
			r.Node = to
		}
		if m, ok := Compose(r); ok {
			parse(t, r, m)
		}
		if !isWritable(e.From.Mailbox) || e.From.Domain() == "" {
			e.From = mail.ReversePath{Mailbox: mail.Mailbox{Local: "alice", Host: "client.test"}}
		}
		// Without the rules about NOTIFY and the header.
		m := r.write()
		e.Recipients[0].Notify, e.Recipients[1].Notify = 14, 14
		plain := r
		plain.Own, plain.Node = nil, "fuzz.test"
		plain.Original.Content, plain.Original.Size = nil, 0
		if Judge(plain)[0] != Due {
			return // the sender is one of the recipients
		}
		parse(t, plain, m)
	})
}
