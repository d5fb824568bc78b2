//go:build e2e

package e2e

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

const (
	signer   = "sender.test"
	selector = "e2e"
)

// A dkimKey signs letters and verifies them, with nothing of ours in between.
type dkimKey struct {
	private crypto.Signer
	record  string // the TXT record of the public key
}

func newDKIMKey(t *testing.T) dkimKey {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return dkimKey{private, "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(public)}
}

// sign puts a signature over the whole header and the body in front. Simple
// canonicalisation takes every octet as it is, but for empty lines at the end
// (RFC 6376 section 3.4).
func (k dkimKey) sign(t *testing.T, message []byte) []byte {
	t.Helper()
	var signed bytes.Buffer
	err := dkim.Sign(&signed, bytes.NewReader(message), &dkim.SignOptions{
		Domain: signer, Selector: selector, Signer: k.private,
		HeaderCanonicalization: dkim.CanonicalizationSimple, BodyCanonicalization: dkim.CanonicalizationSimple,
	})
	if err != nil {
		t.Fatal(err)
	}
	return signed.Bytes()
}

// verify says what is wrong with the one signature of a message.
func (k dkimKey) verify(message []byte) error {
	found, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) {
			if want := selector + "._domainkey." + signer; name != want {
				return nil, fmt.Errorf("the key of %s is asked for, want %s", name, want)
			}
			return []string{k.record}, nil
		},
	})
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d signatures, want 1", len(found))
	}
	return found[0].Err
}

// contents are what a relay, or a mail server that stores lines, can get wrong.
var contents = []struct {
	name     string
	fields   string // after the usual ones
	body     string
	eightBit bool
}{
	{name: "plain", body: "Hello.\r\n"},
	{name: "998 octets", body: strings.Repeat(strings.Repeat("9", 998)+"\r\n", 5)},
	{name: "dots", body: ".\r\n..\r\n...\r\n.a\r\n..b\r\n \r\n. \r\n.\tc\r\n\r\n.\r\n"},
	{name: "8bit", eightBit: true,
		fields: "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n",
		body:   "Gr\xfc\xdfe aus K\xf6ln \xa4 \xff\xfe\x80\r\n\xe9t\xe9\r\n"},
	{name: "empty body"},
	{name: "one empty line", body: "\r\n"},
	{name: "trailing empty lines", body: "The end.\r\n\r\n\r\n\r\n\r\n"},
	{name: "nothing but empty lines", body: "\r\n\r\n\r\n"},
	{name: "blanks", fields: "X-Blanks: two  spaces, a\ttab\r\n\t  and a fold\r\n", body: "blanks behind \t \r\n\t\r\n \r\n"},
	{name: "From", body: "From here on\r\n>From there\r\n\r\nFrom sender@sender.test Mon Jan  5 09:00:00 2026\r\n"},
	{name: "long field", fields: "X-Long: begins" + strings.Repeat("\r\n\t"+strings.Repeat("h", 990), 60) + "\r\n"},
	{name: "long line in the header", fields: "X-Long-Line: " + strings.Repeat("h", 985) + "\r\n", body: "short\r\n"},
	{name: "many fields", fields: manyFields(300), body: "short\r\n"},
	{name: "own trace", fields: "Received: from a.test (a.test [192.0.2.1])\r\n\tby b.test (id no) with ESMTP id abc123;\r\n\tMon, 5 Jan 2026 08:59:00 +0000\r\n", body: "short\r\n"},
	{name: "control characters", body: "bell \a, escape \x1b[31m, form feed \f, delete \x7f\r\n"},
	{name: "300 KiB", body: strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 300<<10/78)},
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-Field-%d: value\r\n\tfolded %d\r\n", i, i)
	}
	return b.String()
}

// signedLetters makes a letter of each content for a domain.
func signedLetters(t *testing.T, key dkimKey, domain string) (letters []*letter.Letter) {
	t.Helper()
	run, _, _ := strings.Cut(domain, ".")
	for i, c := range contents {
		id := ledger.MessageID(fmt.Sprintf("%s-%d", run, i))
		to := ledger.Recipient("user", id, domain)
		message := fmt.Sprintf("From: Sender <sender@%s>\r\nTo: <%s>\r\nSubject: %s\r\nDate: Mon, 05 Jan 2026 09:00:00 +0000\r\nMessage-ID: <%s@%s>\r\n%s\r\n%s",
			signer, to, c.name, id, signer, c.fields, c.body)
		letters = append(letters, letter.Of(id, "sender+"+string(id)+"@"+signer, []string{to}, c.eightBit, key.sign(t, []byte(message))))
	}
	return letters
}

// A signature that verifies means something: any octet that is changed, lost or
// added breaks it. Empty lines at the end alone may come and go.
func TestSignatureOfEveryOctet(t *testing.T) {
	key := newDKIMKey(t)
	for i, l := range signedLetters(t, key, "a.test") {
		message := l.Content()
		if err := key.verify(message); err != nil {
			t.Fatalf("%s: %v", contents[i].name, err)
		}
		if err := key.verify(append([]byte("Received: by b.test;\r\n\tMon, 5 Jan 2026 09:00:01 +0000\r\n"), message...)); err != nil {
			t.Errorf("%s: with a trace field: %v", contents[i].name, err)
		}
		header := bytes.Index(message, []byte("\r\nFrom: ")) + 2
		for _, at := range []int{header + 8, bytes.Index(message, []byte("\r\n\r\n")) - 1, len(bytes.TrimRight(message, "\r\n")) - 1} {
			changed := bytes.Clone(message)
			changed[at] ^= 1
			if key.verify(changed) == nil {
				t.Errorf("%s: it verifies with octet %d changed", contents[i].name, at)
			}
			if key.verify(append(bytes.Clone(message[:at]), message[at+1:]...)) == nil {
				t.Errorf("%s: it verifies without octet %d", contents[i].name, at)
			}
		}
	}
}
