package sink

import (
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

const aReport = "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n" +
	"--b\r\nContent-Type: text/plain\r\n\r\nIt was refused.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; n1.test\r\n" +
	"\r\nFinal-Recipient: rfc822; a+m1@example.test\r\nAction: failed\r\nFinal-Log-ID: Q1\r\n" +
	"\r\nFinal-Recipient: rfc822; b+m1@example.test\r\nAction: failed\r\nFinal-Log-ID: Q1\r\n\r\n--b--\r\n"

// A report tells each of its recipients of each recipient that it is about, and other
// mail tells nobody of anything.
func TestNotices(t *testing.T) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	m := Message{Recipients: []string{"s@x.test", "t@x.test"}, Content: []byte(aReport), QueueID: "R1", Peer: "10.0.0.1:4000", At: at}
	var want []ledger.Notice
	for _, recipient := range []string{"a+m1@example.test", "b+m1@example.test"} {
		for _, to := range m.Recipients {
			want = append(want, ledger.Notice{
				Recipient: recipient, Action: "failed", To: to, Original: "Q1", QueueID: "R1", Peer: "10.0.0.1:4000", At: at,
			})
		}
	}
	if got, err := m.Notices(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v (%v)\nwant %v", got, err, want)
	}
	m.ReversePath = "postmaster@n1.test"
	if got, err := m.Notices(); err != nil || len(got) != len(want) || got[0].ReversePath != m.ReversePath {
		t.Errorf("got %v (%v): who sent the report is to be seen", got, err)
	}
	m.Content = []byte("Subject: x\r\n\r\nhello\r\n")
	if got, err := m.Notices(); err == nil {
		t.Errorf("mail that is no report tells %v", got)
	}
}
