package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// The senders of one domain at least are told, and each policy comes with some seed.
func TestPolicies(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(6) {
		all := policies(seed)
		if len(all) != len(domains()) || all[domains()[0]] != tellAll || !slices.Contains(telling(all), domains()[0]) {
			t.Errorf("seed %d: %v", seed, all)
		}
		for _, policy := range all {
			seen[policy] = true
		}
	}
	if len(seen) != 3 {
		t.Errorf("policies %v", seen)
	}
}

// Reports are noted as what they tell, and what is no report is a breach.
func TestToldSenders(t *testing.T) {
	r, begin := story()
	r.cast.diary, r.cast.arrived, r.cast.book = r.diary, ledger.New(), ledger.New()
	book := r.cast.book
	book.Tell(domains()...)
	const recipient = "nobody+m1@example.test"
	_ = book.Intent(ledger.Intent{ID: "m1", Attempt: 1, ReversePath: "", Recipients: []string{recipient}})
	_ = book.Outcome(ledger.Outcome{ID: "m1", Attempt: 1, Recipients: []string{recipient}, Result: ledger.OK, QueueID: "Q1"})
	_ = r.cast.refused(ledger.Refusal{Recipient: recipient})
	report := "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n" +
		"Reporting-MTA: dns; n1.test\r\n\r\nFinal-Recipient: rfc822; " + recipient + "\r\nAction: failed\r\n\r\n--b--\r\n"
	for _, content := range []string{report, "Subject: an offer\r\n\r\nbuy\r\n"} {
		if err := r.cast.told(sink.Message{Recipients: []string{"s@sender.test"}, Content: []byte(content), At: begin}); err != nil {
			t.Fatal(err)
		}
	}
	if got := book.CheckNotices(r.interrupted); got.Undue != 1 || got.Silent != 1 {
		t.Errorf("a report about mail that has no sender: %+v", got)
	}
	if got := r.diary.breaches(); len(got) != 1 || !strings.HasPrefix(got[0], "L9") {
		t.Errorf("mail that is no report: %q", got)
	}
}
