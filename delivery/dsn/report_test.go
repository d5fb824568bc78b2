package dsn

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"net/textproto"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var update = flag.Bool("update", false, "write the reports in testdata as they are now; read the diff")

// letter is a message as strangers send them.
const letter = "Received: from relay.client.test by mx1.backup.test; Tue, 14 Nov 2023 22:13:19 +0000\r\n" +
	"From: Alice <alice@client.test>\r\n" +
	"To: Bob <bob@example.test>\r\n" +
	"Subject: a subject that goes on\r\n" +
	" in a second line\r\n" +
	"Message-ID: <one@client.test>\r\n" +
	"\r\n" +
	"Hello Bob,\r\n.\r\n..\r\n--not a boundary\r\n"

func queueID(n byte) mail.QueueID {
	return mail.MintQueueID(1_700_000_000_000+uint64(n), [10]byte{0: n})
}

func recipient(local string) mail.Recipient {
	return mail.Recipient{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: local, Host: "example.test"}}, Domain: "example.test"}
}

// sample is a report about one recipient, due for every kind but for what the
// sender has to ask for.
func sample(k Kind) Report {
	return Report{
		ID: queueID(2), Kind: k, Node: "mx2.backup.test", At: 1_700_086_400,
		Own: []mail.Domain{"mx1.backup.test", "mx2.backup.test"},
		Original: Original{
			ID: queueID(1),
			Envelope: mail.Envelope{
				From:       mail.ReversePath{Mailbox: mail.Mailbox{Local: "alice", Host: "client.test"}},
				Recipients: []mail.Recipient{recipient("bob")},
				Trace:      mail.Trace{Hello: "relay.client.test", Node: "mx1.backup.test", Protocol: "ESMTPS", Received: 1_700_000_000},
			},
			Content: []byte(letter), Size: mail.ByteSize(len(letter)),
		},
		Fates: []Fate{{
			Reply:  mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 1}, Text: "no such user"},
			Remote: "mail.example.test", LastAttempt: 1_700_086_399,
		}},
	}
}

// reports are the golden files.
func reports() map[string]Report {
	failure := sample(Failure)
	failure.Original.Envelope.EnvelopeID = "QQ+2B314+3D159"
	failure.Original.Envelope.Recipients = []mail.Recipient{recipient("bob"), recipient(`"john  smith"`), recipient("carol")}
	failure.Original.Envelope.Recipients[0].Original = "rfc822;Bob+2Bfriends@example.test"
	failure.Fates = append(failure.Fates, Fate{
		Recipient: 1, Remote: "192.0.2.7", LastAttempt: 1_700_086_398,
		Reply: mail.Reply{Code: 554, Text: "the mail server of this organisation does not take mail of this sort from anybody at all, see http://example.test/policy"},
	})

	full := sample(Failure)
	full.Original.Envelope.Return = mail.ReturnFull
	full.Original.PossibleDuplicate = true

	eight := sample(Failure)
	eight.Original.Envelope.Return = mail.ReturnFull
	eight.Original.Content = []byte("Subject: 8 bits\r\n\r\ncaf\xe9\r\n")
	eight.Original.Size = mail.ByteSize(len(eight.Original.Content))

	broken := sample(Failure)
	broken.Original.Content = []byte("Subject: caf\xe9 \x00 " + strings.Repeat("long ", 300) + "\r\nno field\r\nX: y\r\n\r\nbody\r\n")
	broken.Original.Size = mail.ByteSize(len(broken.Original.Content))

	expired := sample(Expired)
	expired.Original.PossibleDuplicate = true
	expired.Fates[0].Reply, expired.Fates[0].Remote = mail.Reply{}, ""

	delay := sample(Delay)
	delay.Original.Envelope.Recipients[0].Notify = mail.NotifyDelay | mail.NotifyFailure
	delay.Fates[0].Reply = mail.Reply{Code: 451, Text: "try later"}
	delay.Fates[0].RetryUntil = 1_702_592_000

	relayed := sample(Relayed)
	relayed.Original.Envelope.Recipients[0].Notify = mail.NotifySuccess
	relayed.Fates[0].Reply = mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{2, 0, 0}, Text: "Ok: queued as 4711"}

	global := sample(Failure)
	global.Original.Envelope.SMTPUTF8 = true
	global.Original.Envelope.From = mail.ReversePath{Mailbox: mail.Mailbox{Local: "пеле", Host: "клиент.test"}}
	global.Original.Envelope.Recipients = []mail.Recipient{recipient("büro"), recipient("bob")}
	global.Original.Envelope.Recipients[0].Original = `utf-8;b\x{FC}ro\x{2B}x@example.test`
	global.Original.Envelope.Recipients[1].Original = "rfc822;bob@example.test"
	global.Original.Content = []byte("Subject: Grüße\r\nFrom: пеле@клиент.test\r\n\r\nHallo\r\n")
	global.Original.Size = mail.ByteSize(len(global.Original.Content))
	global.Fates[0].Reply.Text = "kein Büro"
	global.Fates = append(global.Fates, Fate{Recipient: 1, Reply: mail.Reply{Code: 550}, Remote: "mail.example.test"})

	globalFull := global
	globalFull.Original.Envelope.Return = mail.ReturnFull
	globalFull.Original.Envelope.From.Local = "pele" // so that the way back need not know SMTPUTF8

	return map[string]Report{
		"failure": failure, "failure-full": full, "failure-full-8bit": eight, "failure-broken-header": broken,
		"expired": expired, "delay": delay, "relayed": relayed, "utf8": global, "utf8-full": globalFull,
	}
}

func TestReports(t *testing.T) {
	for name, r := range reports() {
		t.Run(name, func(t *testing.T) {
			m, ok := Compose(r)
			if !ok {
				t.Fatalf("no report: %v", Judge(r))
			}
			parse(t, r, m)
			path := filepath.Join("testdata", name+".eml")
			if *update {
				if err := os.WriteFile(path, m.Content, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Content, want) {
				t.Errorf("got\n%s\nwant\n%s", m.Content, want)
			}
		})
	}
}

// TestReportsAreTheSame: the same report gives the same octets, and does not
// change what it was made from.
func TestReportsAreTheSame(t *testing.T) {
	for name, r := range reports() {
		first, _ := Compose(r)
		if again, _ := Compose(reports()[name]); !reflect.DeepEqual(first, again) {
			t.Errorf("%s: another report at the second attempt", name)
		}
		if !reflect.DeepEqual(r, reports()[name]) {
			t.Errorf("%s: composing changed what it was given", name)
		}
	}
}

// A parsed report is what a reader of mail finds in it.
type parsed struct {
	header     netmail.Header
	text       string
	perMessage textproto.MIMEHeader
	recipients []textproto.MIMEHeader
	third      string
	thirdType  string
}

// parse reads a report back, and fails where it breaks a promise of the package
// comment.
func parse(t testing.TB, r Report, m Message) parsed {
	t.Helper()
	checkOctets(t, m)
	checkEnvelope(t, r, m)
	message, err := netmail.ReadMessage(bytes.NewReader(m.Content))
	if err != nil {
		t.Fatalf("no message: %v", err)
	}
	p := parsed{header: message.Header}
	for _, name := range []string{
		"Date", "From", "To", "Subject", "Message-Id", "Auto-Submitted", "Mime-Version", "Content-Type", "Content-Transfer-Encoding",
	} {
		if len(message.Header[name]) != 1 {
			t.Fatalf("%d fields %s", len(message.Header[name]), name)
		}
	}
	if len(message.Header) != 9 {
		t.Fatalf("a field that nobody wrote: %v", message.Header)
	}
	kind, parameters, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || parameters["report-type"] != "delivery-status" || len(parameters) != 2 {
		t.Fatalf("content type %s %v, %v", kind, parameters, err)
	}
	status, headers, whole := "message/delivery-status", "text/rfc822-headers", "message/rfc822"
	if r.Original.Envelope.SMTPUTF8 {
		status, headers, whole = "message/global-delivery-status", "message/global-headers", "message/global"
	}
	parts := multipart.NewReader(message.Body, parameters["boundary"])
	for n := 1; ; n++ {
		raw, err := parts.NextRawPart()
		if err == io.EOF && n == 4 {
			break
		}
		if err != nil {
			t.Fatalf("part %d: %v", n, err)
		}
		if len(raw.Header) != 2 || len(raw.Header["Content-Type"]) != 1 || len(raw.Header["Content-Transfer-Encoding"]) != 1 {
			t.Fatalf("part %d has the header %v", n, raw.Header)
		}
		octets := decode(t, raw)
		kind, parameters, err := mime.ParseMediaType(raw.Header.Get("Content-Type"))
		if err != nil {
			t.Fatalf("part %d: %v", n, err)
		}
		switch {
		case n == 1 && kind == "text/plain" && parameters["charset"] != "":
			p.text = string(octets)
		case n == 2 && kind == status:
			p.perMessage, p.recipients = readStatus(t, octets)
		case n == 3 && (kind == headers || kind == whole):
			p.third, p.thirdType = string(octets), kind
		default:
			t.Fatalf("part %d is %s %v", n, kind, parameters)
		}
	}
	checkFields(t, r, p)
	return p
}

// checkOctets: lines of at most 998 octets that end in CRLF, 7 bits if the
// envelope does not say otherwise, and no NUL.
func checkOctets(t testing.TB, m Message) {
	t.Helper()
	for i, line := range bytes.SplitAfter(m.Content, []byte("\r\n")) {
		text, ended := bytes.CutSuffix(line, []byte("\r\n"))
		switch {
		case !ended && len(line) > 0:
			t.Fatalf("line %d does not end: %q", i+1, line)
		case len(text) > 998:
			t.Fatalf("line %d of %d octets", i+1, len(text))
		case bytes.ContainsAny(text, "\r\n\x00"):
			t.Fatalf("line %d: %q", i+1, text)
		}
	}
	if !isASCII(m.Content) != m.Envelope.EightBit {
		t.Fatalf("8 bits: %v, the envelope says %v", !isASCII(m.Content), m.Envelope.EightBit)
	}
	header, _, _ := bytes.Cut(m.Content, []byte("\r\n\r\n"))
	if !isASCII(header) && !m.Envelope.SMTPUTF8 {
		t.Fatalf("a header that needs SMTPUTF8: %q", header)
	}
}

// checkEnvelope: RFC 3461 section 6.1.
func checkEnvelope(t testing.TB, r Report, m Message) {
	t.Helper()
	e, from := m.Envelope, r.Original.Envelope.From
	if !e.From.IsNull() || e.Return != mail.ReturnUnset || e.EnvelopeID != "" || len(e.Recipients) != 1 {
		t.Fatalf("envelope %+v", e)
	}
	to := e.Recipients[0]
	if to.Notify != mail.NotifyNever || to.Original != "" || to.Domain == "" || to.Domain != from.Domain() || to.Path.Local != from.Local || to.Path.Domain() != from.Domain() {
		t.Fatalf("goes to %+v, the sender is %v", to, from)
	}
}

func decode(t testing.TB, p *multipart.Part) []byte {
	t.Helper()
	var reader io.Reader = p
	switch encoding := p.Header.Get("Content-Transfer-Encoding"); encoding {
	case "7bit", "8bit":
	case "quoted-printable":
		reader = quotedprintable.NewReader(p)
	default:
		t.Fatalf("encoding %q", encoding)
	}
	octets, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if p.Header.Get("Content-Transfer-Encoding") == "7bit" && !isASCII(octets) {
		t.Fatalf("8 bits under the label 7bit: %q", octets)
	}
	return octets
}

func readStatus(t testing.TB, octets []byte) (perMessage textproto.MIMEHeader, recipients []textproto.MIMEHeader) {
	t.Helper()
	reader := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(bytes.Clone(octets), '\r', '\n'))))
	for {
		group, err := reader.ReadMIMEHeader()
		if err == io.EOF && len(group) == 0 {
			break
		}
		if err != nil {
			t.Fatalf("status %q: %v", octets, err)
		}
		if perMessage == nil {
			perMessage = group
		} else {
			recipients = append(recipients, group)
		}
	}
	return perMessage, recipients
}

// checkFields: what RFC 3464 sections 2.2 and 2.3 and RFC 3461 section 6.3 want
// to be there, once, and nothing else.
func checkFields(t testing.TB, r Report, p parsed) {
	t.Helper()
	allow := func(group textproto.MIMEHeader, must, may string) {
		t.Helper()
		for name, values := range group {
			if len(values) != 1 || !strings.Contains(" "+must+" "+may+" ", " "+name+" ") {
				t.Fatalf("field %s: %q", name, values)
			}
		}
		for name := range strings.FieldsSeq(must) {
			if group.Get(name) == "" {
				t.Fatalf("no field %s in %v", name, group)
			}
		}
	}
	allow(p.perMessage, "Reporting-Mta", "Original-Envelope-Id Arrival-Date")
	if (p.perMessage["Original-Envelope-Id"] != nil) != (r.Original.Envelope.EnvelopeID != "") {
		t.Fatalf("envelope id %q of %q", p.perMessage["Original-Envelope-Id"], r.Original.Envelope.EnvelopeID)
	}
	due := 0
	for _, v := range Judge(r) {
		if v == Due {
			due++
		}
	}
	if len(p.recipients) != due {
		t.Fatalf("%d recipients, %d are due", len(p.recipients), due)
	}
	for _, group := range p.recipients {
		allow(group, "Final-Recipient Action Status Final-Log-Id", "Original-Recipient Remote-Mta Diagnostic-Code Last-Attempt-Date Will-Retry-Until")
		for _, name := range []string{"Last-Attempt-Date", "Will-Retry-Until"} {
			if group[name] != nil {
				if _, err := netmail.ParseDate(group.Get(name)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		var class, subject, detail int
		if n, err := fmt.Sscanf(group.Get("Status"), "%d.%d.%d", &class, &subject, &detail); n != 3 || err != nil {
			t.Fatalf("status %q", group.Get("Status"))
		}
		want := map[string]string{"failed": "45", "delayed": "4", "relayed": "2"}[group.Get("Action")]
		if !strings.Contains(want, fmt.Sprint(class)) {
			t.Fatalf("%s with %s", group.Get("Action"), group.Get("Status"))
		}
	}
}

// TestFields: each field is where RFC 3464 says, and says what happened.
func TestFields(t *testing.T) {
	all := reports()
	for _, test := range []struct {
		report    string
		recipient int // -1: of the message
		name      string
		want      string
	}{
		{"failure", -1, "Original-Envelope-Id", "QQ+314=159"},
		{"failure", -1, "Reporting-Mta", "dns; mx2.backup.test"},
		{"failure", -1, "Arrival-Date", "Tue, 14 Nov 2023 22:13:20 +0000"},
		{"failure", 0, "Original-Recipient", "rfc822; Bob+friends@example.test"},
		{"failure", 0, "Final-Recipient", "rfc822; bob@example.test"},
		{"failure", 0, "Action", "failed"},
		{"failure", 0, "Status", "5.1.1"},
		{"failure", 0, "Remote-Mta", "dns; mail.example.test"},
		{"failure", 0, "Diagnostic-Code", "smtp; 550 5.1.1 no such user"},
		{"failure", 0, "Last-Attempt-Date", "Wed, 15 Nov 2023 22:13:19 +0000"},
		{"failure", 0, "Final-Log-Id", queueID(1).String()},
		{"failure", 0, "Will-Retry-Until", ""},
		{"failure", 1, "Original-Recipient", ""},
		{"failure", 1, "Final-Recipient", `rfc822; "john  smith"@example.test`},
		{"failure", 1, "Status", "5.0.0"},
		{"failure", 1, "Remote-Mta", "dns; [192.0.2.7]"},
		{"expired", 0, "Action", "failed"},
		{"expired", 0, "Status", "4.4.7"},
		{"expired", 0, "Remote-Mta", ""},
		{"expired", 0, "Diagnostic-Code", ""},
		{"expired", -1, "Original-Envelope-Id", ""},
		{"delay", 0, "Action", "delayed"},
		{"delay", 0, "Status", "4.3.0"},
		{"delay", 0, "Diagnostic-Code", "smtp; 451 try later"},
		{"delay", 0, "Will-Retry-Until", "Thu, 14 Dec 2023 22:13:20 +0000"},
		{"relayed", 0, "Action", "relayed"},
		{"relayed", 0, "Status", "2.0.0"},
		{"utf8", 0, "Original-Recipient", "utf-8; büro+x@example.test"},
		{"utf8", 0, "Final-Recipient", "utf-8; büro@example.test"},
		{"utf8", 0, "Diagnostic-Code", "smtp; 550 5.1.1 kein Büro"},
		{"utf8", 1, "Original-Recipient", "rfc822; bob@example.test"},
		{"utf8", 1, "Final-Recipient", "rfc822; bob@example.test"},
	} {
		m, ok := Compose(all[test.report])
		if !ok {
			t.Fatalf("%s: no report", test.report)
		}
		p := parse(t, all[test.report], m)
		group := p.perMessage
		if test.recipient >= 0 {
			group = p.recipients[test.recipient]
		}
		if got := group.Get(test.name); got != test.want {
			t.Errorf("%s, recipient %d: %s is %q, want %q", test.report, test.recipient, test.name, got, test.want)
		}
	}
}

// TestHeaders: the report's own header, and where it goes.
func TestHeaders(t *testing.T) {
	r := sample(Failure)
	m, _ := Compose(r)
	p := parse(t, r, m)
	for name, want := range map[string]string{
		"Date": "Wed, 15 Nov 2023 22:13:20 +0000", "From": "Mail Delivery System <postmaster@mx2.backup.test>", "To": "<alice@client.test>",
		"Message-ID": "<" + r.ID.String() + "@mx2.backup.test>", "Auto-Submitted": "auto-replied", "MIME-Version": "1.0",
	} {
		if got := p.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := p.header.AddressList("To"); err != nil {
		t.Error(err)
	}
	if _, err := p.header.AddressList("From"); err != nil {
		t.Error(err)
	}
}

// TestHostsInASCII: where only the sender's host is outside ASCII, its A-label
// spares the report SMTPUTF8, and whoever cannot speak that.
func TestHostsInASCII(t *testing.T) {
	r := reports()["utf8-full"]
	m, _ := Compose(r)
	if to := m.Envelope.Recipients[0].Path.String(); to != "pele@xn--e1affem4a.test" || m.Envelope.SMTPUTF8 {
		t.Errorf("to %s, SMTPUTF8 %v", to, m.Envelope.SMTPUTF8)
	}
	if !isASCII(m.Content) {
		t.Error("8 bits in a report whose way back may not know them")
	}
	if m, _ := Compose(reports()["utf8"]); !m.Envelope.SMTPUTF8 {
		t.Error("a To field in UTF-8 goes without SMTPUTF8")
	}
}

// TestReturn: RET is honoured within its limits (RFC 3461 sections 4.3 and 6.2).
func TestReturn(t *testing.T) {
	const head = "From: Alice <alice@client.test>\r\n"
	long := head + "\r\n" + strings.Repeat("0123456789\r\n", int(ContentBytesMax)/12+1)
	for _, test := range []struct {
		what    string
		kind    Kind
		ret     mail.Return
		content string
		want    string
		third   string
	}{
		{"no RET", Failure, mail.ReturnUnset, head + "\r\nbody\r\n", "text/rfc822-headers", head},
		{"HDRS", Failure, mail.ReturnHeaders, head + "\r\nbody\r\n", "text/rfc822-headers", head},
		{"FULL", Failure, mail.ReturnFull, head + "\r\nbody\r\n", "message/rfc822", head + "\r\nbody\r\n"},
		{"FULL, expired", Expired, mail.ReturnFull, head + "\r\nbody\r\n", "message/rfc822", head + "\r\nbody\r\n"},
		{"FULL of a delay", Delay, mail.ReturnFull, head + "\r\nbody\r\n", "text/rfc822-headers", head},
		{"FULL of a success", Relayed, mail.ReturnFull, head + "\r\nbody\r\n", "text/rfc822-headers", head},
		{"FULL, without an end of line", Failure, mail.ReturnFull, head + "\r\nbody", "message/rfc822", head + "\r\nbody"},
		{"FULL, 8 bits", Failure, mail.ReturnFull, head + "\r\n\xff\r\n", "message/rfc822", head + "\r\n\xff\r\n"},
		{"FULL, too long", Failure, mail.ReturnFull, long, "text/rfc822-headers", head},
		{"FULL, a NUL", Failure, mail.ReturnFull, head + "\r\na\x00b\r\n", "text/rfc822-headers", head},
		{"FULL, a long line", Failure, mail.ReturnFull, head + "\r\n" + strings.Repeat("a", 999) + "\r\n", "text/rfc822-headers", head},
		{"FULL, a stray CR", Failure, mail.ReturnFull, head + "\r\na\rb\r\n", "text/rfc822-headers", head},
		{"FULL, a stray LF", Failure, mail.ReturnFull, head + "\r\na\nb\r\n", "text/rfc822-headers", head},
		{"a stray CR in the header", Failure, mail.ReturnHeaders, head + "X: a\rY: b\r\n\r\n", "text/rfc822-headers", head + "X: a Y: b\r\n"},
		{"a stray LF in the header", Failure, mail.ReturnHeaders, head + "X: a\nY: b\n\nbody\n", "text/rfc822-headers", head + "X: a\r\nY: b\r\n"},
		{"a long line in the header", Failure, mail.ReturnHeaders, head + "X: " + strings.Repeat("a", 1000) + "\r\n\r\n", "text/rfc822-headers", head + "X: " + strings.Repeat("a", 1000) + "\r\n"},
		{"no header", Failure, mail.ReturnHeaders, "\r\nSubject: in the body\r\n", "text/rfc822-headers", ""},
		{"a line that is no field", Failure, mail.ReturnHeaders, head + "no field\r\nSubject: x\r\n\r\nbody\r\n", "text/rfc822-headers", head},
		{"nothing but a body", Failure, mail.ReturnHeaders, "Hello,\r\nX: y\r\n", "text/rfc822-headers", ""},
		{"an empty message", Failure, mail.ReturnFull, "", "message/rfc822", ""},
		{"a header alone", Failure, mail.ReturnHeaders, head, "text/rfc822-headers", head},
	} {
		r := sample(test.kind)
		r.Original.Envelope.Return = test.ret
		r.Original.Envelope.Recipients[0].Notify = mail.NotifyFailure | mail.NotifyDelay | mail.NotifySuccess
		r.Original.Content, r.Original.Size = []byte(test.content), mail.ByteSize(len(test.content))
		m, ok := Compose(r)
		if !ok {
			t.Errorf("%s: %v", test.what, Judge(r))
			continue
		}
		if p := parse(t, r, m); p.thirdType != test.want || p.third != test.third {
			t.Errorf("%s: %s %q", test.what, p.thirdType, p.third)
		}
	}
}

// TestFirstOctetsAreNotTheMessage: what was handed in is not returned as whole
// when the message goes on behind it.
func TestFirstOctetsAreNotTheMessage(t *testing.T) {
	r := sample(Failure)
	r.Original.Envelope.Return = mail.ReturnFull
	r.Original.Size++
	m, _ := Compose(r)
	if p := parse(t, r, m); p.thirdType != "text/rfc822-headers" || strings.Contains(p.third, "Hello") {
		t.Errorf("%s %q", p.thirdType, p.third)
	}
}

// TestDoubt: who may have got the message is told so (RFC 1047).
func TestDoubt(t *testing.T) {
	for _, k := range []Kind{Failure, Expired, Delay, Relayed} {
		r := sample(k)
		r.Original.Envelope.Recipients[0].Notify = mail.NotifyFailure | mail.NotifyDelay | mail.NotifySuccess
		for _, doubt := range []bool{false, true} {
			r.Original.PossibleDuplicate = doubt
			m, ok := Compose(r)
			if !ok {
				t.Fatalf("%s: %v", k, Judge(r))
			}
			text := strings.Join(strings.Fields(parse(t, r, m).text), " ")
			if got := strings.Contains(text, "without an answer that could be recorded"); got != doubt {
				t.Errorf("%s, possible duplicate %v: %q", k, doubt, text)
			}
		}
	}
}
