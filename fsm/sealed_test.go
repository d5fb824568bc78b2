package fsm

import (
	"bytes"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func sealedSamples() map[string]unsealed {
	to := func(local, host string, d mail.Domain) mail.Recipient {
		return mail.Recipient{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: local, Host: host}}, Domain: d}
	}
	full := to("ü", "A.test", "a.test")
	full.Notify, full.Original = mail.NotifySuccess|mail.NotifyFailure|mail.NotifyDelay, "rfc822;+FC@a.test"
	never := to("b", "a.test", "a.test")
	never.Notify = mail.NotifyNever
	everything := unsealed{
		envelope: mail.Envelope{
			From:       mail.ReversePath{Mailbox: mail.Mailbox{Local: `"a b"`, Host: "x.test"}},
			Recipients: []mail.Recipient{full, never, to("c", "a.test", "a.test")},
			Return:     mail.ReturnHeaders, EnvelopeID: "Q1", EightBit: true, SMTPUTF8: true,
			Trace: mail.Trace{Hello: "x.test", Client: netip.MustParseAddr("fe80::7%eth0"), Received: 1_790_000_000},
		},
		body: mail.BodyRef{Digest: mail.Digest{1, 31: 9}, Size: 1 << 40},
		at:   math.MaxInt64,
	}
	long := unsealed{envelope: mail.Envelope{Recipients: []mail.Recipient{to(strings.Repeat("x", 300), "a.test", "a.test")}}}
	long.envelope.Trace.Client = netip.MustParseAddr("192.0.2.1")
	return map[string]unsealed{
		"everything":         everything,
		"long local part":    long,
		"before the epoch":   {envelope: mail.Envelope{Recipients: []mail.Recipient{full}, Trace: mail.Trace{Received: -1}}},
		"from the null path": {envelope: mail.Envelope{Recipients: []mail.Recipient{to("a", "a.test", "a.test")}, Return: mail.ReturnFull}},
	}
}

func TestSealed(t *testing.T) {
	for what, want := range sealedSamples() {
		s := seal(want.envelope, want.body, want.at)
		got, err := s.open()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", what, got, err, want)
		}
		if s.size() != want.body.Size || s.at() != want.at {
			t.Errorf("%s: size %d, at %d", what, s.size(), s.at())
		}
		for n := range len(s) {
			if _, err := s[:n].open(); err == nil {
				t.Errorf("%s: cut at %d of %d it is opened", what, n, len(s))
			}
		}
		if _, err := append(s[:len(s):len(s)], 0).open(); err != errSealedLong {
			t.Errorf("%s: with an octet behind it: %v", what, err)
		}
		for n := range len(s) { // nothing panics, whatever it says
			for bit := range 8 {
				damaged := bytes.Clone(s)
				damaged[n] ^= 1 << bit
				_, _ = sealed(damaged).open()
				sealed(damaged).size()
				sealed(damaged).at()
			}
		}
	}
}

// TestSealedRefused: what this version does not know is not passed over.
func TestSealedRefused(t *testing.T) {
	whole := seal(sealedSamples()["from the null path"].envelope, mail.BodyRef{}, 0)
	const flags = 1 + 32 + 3 // behind form, digest and three numbers of one octet
	recipient := strings.LastIndex(string(whole), "\x01a\x06a.test") - 1
	for what, test := range map[string]struct {
		at   int
		put  byte
		want error
	}{
		"another form":                {0, 2, errSealedForm},
		"an unknown flag":             {flags, 1 << 4, errSealedForm},
		"an unknown RET":              {flags, 3 << sealedReturnShift, errSealedForm},
		"an unknown recipient's flag": {recipient, 1 << 6, errSealedForm},
		"text that is not UTF-8":      {recipient + 2, 0xff, errSealedText},
		"too many recipients":         {recipient - 1, 100, errSealedShort},
	} {
		b := bytes.Clone(whole)
		b[test.at] = test.put
		if _, err := sealed(b).open(); err != test.want {
			t.Errorf("%s: %v, want %v", what, err, test.want)
		}
	}
}
