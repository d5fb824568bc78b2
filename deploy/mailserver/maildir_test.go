package mailserver

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// What each make writes in front of a message is taken off, and says who gave it the
// message, and when.
func TestParseKept(t *testing.T) {
	const message = "Received: from sender.test by node-1.holdfast.test\n\t(Holdfast 1) with ESMTP id 01M8;\n\tMon, 30 Nov 2026 10:00:00 +0000\nSubject: x\n\ny\n"
	for name, c := range map[string]struct {
		text string
		at   time.Time
	}{
		"postfix": {"Return-Path: <a@sender.test>\nX-Original-To: u@example.test\nDelivered-To: u@example.test\n" +
			"Received: from node-3.holdfast.test (unknown [10.77.0.13])\n\tby peer.test (Postfix) with ESMTPS id 4B12\n\tfor <u@example.test>; Mon, 30 Nov 2026 10:04:02 +0000 (UTC)\n",
			time.Date(2026, 11, 30, 10, 4, 2, 0, time.UTC)},
		// The id is of ten seconds before.
		"exim": {"Return-path: <a@sender.test>\nEnvelope-to: u@example.test\n" +
			"Received: from [10.77.0.13] (helo=node-3.holdfast.test)\n\tby peer.test with esmtps (TLS1.3) tls TLS_AES\n\t(Exim 4.96)\n\tid 1xXyEi-0000Ip-1s\n\tfor u@example.test;\n\tMon, 30 Nov 2026 10:04:02 +0000\n",
			time.Date(2026, 11, 30, 10, 3, 52, 0, time.UTC)},
		"opensmtpd": {"Return-Path: <a@sender.test>\nDelivered-To: u@example.test\n" +
			"Received: from node-3.holdfast.test (<unknown> [10.77.0.13])\n\tby peer.test (OpenSMTPD) with ESMTP id 9b37\n\tfor <u@example.test>;\n\tMon, 30 Nov 2026 10:04:02 +0000 (UTC)\n",
			time.Date(2026, 11, 30, 10, 4, 2, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseKept([]byte(c.text + message))
			if err != nil {
				t.Fatal(err)
			}
			if a.Recipient != "u@example.test" || a.ReversePath != "a@sender.test" || a.Peer != "10.77.0.13:0" || a.QueueID != "01M8" || !a.At.Equal(c.at) {
				t.Errorf("%+v", a)
			}
			sent := strings.ReplaceAll("Subject: x\n\ny\n", "\n", "\r\n")
			if want := (ledger.Octets{Size: int64(len(sent)), SHA256: ledger.DigestOf([]byte(sent))}); len(a.Cuts) != 2 || a.Cuts[1] != want {
				t.Errorf("cuts %v, want the second to be %v", a.Cuts, want)
			}
		})
	}
	for _, bad := range []string{"", "Subject: x\n\ny\n", "Delivered-To: u@example.test\nSubject: x\n\ny\n"} {
		if a, err := ParseKept([]byte(bad)); err == nil {
			t.Errorf("%q became %+v", bad, a)
		}
	}
}
