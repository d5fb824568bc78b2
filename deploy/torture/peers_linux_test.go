package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// An idle is a server that does nothing but have a log.
type idle struct{ log string }

func (i idle) Start() error                { return nil }
func (i idle) Stop() error                 { return nil }
func (i idle) Signal(syscall.Signal) error { return nil }
func (i idle) Log() string                 { return i.log }
func (i idle) Queued() int                 { return 0 }

// testPeer makes a peer with a maildir and a log, and the ledger that judges it.
func testPeer(t *testing.T, is schedule.Peer) *peer {
	t.Helper()
	dir := t.TempDir()
	p := &peer{is: is, diary: newDiary(io.Discard, time.Now()), server: idle{filepath.Join(dir, "log")}, book: ledger.New()}
	p.sent, p.arrived = p.book, ledger.New()
	p.shelf.box = mailserver.Maildir{Path: dir, Take: true}
	p.shelf.latest = map[copyOf]time.Time{}
	p.post.letters, p.post.open = map[string]*handed{}, map[string]bool{}
	for _, name := range []string{"new", "cur"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

const testContent = "Subject: x\r\n\r\ny\r\n"

func testIntent(id ledger.MessageID) ledger.Intent {
	return ledger.Intent{
		ID: id, Attempt: 1, ReversePath: "a@sender.test", Recipients: []string{ledger.Recipient("u", id, "example.test")},
		Octets: ledger.Octets{Size: int64(len(testContent)), SHA256: ledger.DigestOf([]byte(testContent))},
	}
}

// What a real primary has on its disk is judged: a message that it does not have is
// lost, one with other octets altered, and one that it has twice is a second copy.
func TestRealPrimaryIsJudgedByItsDisk(t *testing.T) {
	p := testPeer(t, schedule.Peer{Make: mailserver.Postfix, Side: schedule.Primary})
	at := time.Now().Add(-time.Minute).Truncate(time.Second)
	keep := func(id ledger.MessageID, file, content string) {
		t.Helper()
		text := fmt.Sprintf("Return-Path: <a@sender.test>\nDelivered-To: %s\nReceived: from node-2 (unknown [%v])\n\tby peer.test (Postfix) with ESMTP id 4B12;\n\t%s\nReceived: from s.test by node-2\n\twith ESMTP id Q%[4]s; %[3]s\n%[5]s",
			ledger.Recipient("u", id, "example.test"), addressNode(1), at.Format(time.RFC1123Z), id, strings.ReplaceAll(content, "\r\n", "\n"))
		if err := os.WriteFile(filepath.Join(p.shelf.box.Path, "new", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []ledger.MessageID{"whole", "twice", "other", "gone"} {
		i := testIntent(id)
		if err := p.book.Intent(i); err != nil {
			t.Fatal(err)
		}
		if err := p.book.Outcome(ledger.Outcome{ID: id, Attempt: 1, Recipients: i.Recipients, Result: ledger.OK, QueueID: "Q" + string(id)}); err != nil {
			t.Fatal(err)
		}
	}
	keep("whole", "1", testContent)
	keep("twice", "2", testContent)
	keep("other", "3", "Subject: z\r\n\r\ny\r\n")
	if err := p.read(); err != nil {
		t.Fatal(err)
	}
	keep("twice", "4", testContent)
	if err := p.read(); err != nil {
		t.Fatal(err)
	}
	if got := p.book.Check(); got.Accepted != 4 || got.Delivered != 2 || got.Lost != 1 || got.Altered != 1 || got.Duplicates != 1 {
		t.Errorf("%v\n%s", got, strings.Join(got.Cases, "\n"))
	}
	never := func(ledger.Arrival, bool) bool { return false }
	if got := p.book.CheckCopies(never); got.TooMany != 1 {
		t.Errorf("%+v", got)
	}

	// What it took while it was disturbed itself is excused; what it took before is not.
	p.arrived = p.book
	p.shelf.disturbances = []ledger.Span{{From: at.Add(-time.Hour), To: at.Add(-time.Minute)}}
	if err := p.excuse(); err != nil {
		t.Fatal(err)
	}
	if got := p.book.CheckCopies(never); got.TooMany != 1 {
		t.Errorf("a disturbance that was over excuses: %+v", got)
	}
	p.shelf.disturbances = []ledger.Span{{From: at.Add(-time.Hour), To: at.Add(time.Second)}}
	if err := p.excuse(); err != nil {
		t.Fatal(err)
	}
	if got := p.book.CheckCopies(never); got.TooMany != 0 {
		t.Errorf("a disturbance that it was given mail in does not excuse: %+v", got)
	}
	a := ledger.Arrival{Recipient: ledger.Recipient("u", "twice", "example.test"), QueueID: "Qtwice", At: at}
	if late := p.wrote(a); late.Before(time.Now().Add(-30 * time.Second)) {
		t.Errorf("written at %v, which is when it came", late)
	}
}

// A real sender is believed what its log says, whenever it says it: what it took is
// not accepted before, and what it cannot know stays unknown.
func TestRealSenderIsBelievedItsLog(t *testing.T) {
	p := testPeer(t, schedule.Peer{Make: mailserver.Postfix, Side: schedule.Sender})
	var log strings.Builder
	line := func(format string, args ...any) {
		t.Helper()
		fmt.Fprintf(&log, "Nov 30 10:00:01 host peer/smtp[99]: "+format+"\n", args...)
		if err := os.WriteFile(p.server.Log(), []byte(log.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := p.read(); err != nil {
			t.Fatal(err)
		}
	}
	to := func(id ledger.MessageID) string { return ledger.Recipient("u", id, "example.test") }
	hand := func(id ledger.MessageID, queueID string) {
		t.Helper()
		if err := (clerk{p}).Outcome(ledger.Outcome{ID: id, Attempt: 1, Recipients: []string{to(id)}, Result: ledger.OK, Reply: "250 2.0.0 Ok: queued as " + queueID}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []ledger.MessageID{"early", "retried", "refused"} {
		if err := (clerk{p}).Intent(testIntent(id)); err != nil {
			t.Fatal(err)
		}
	}
	const sent = "%s: to=<%s>, relay=mx[10.77.0.12]:2525, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 2.0.0 queued as Q%s)"
	line(sent, "AAA", to("early"), "early") // before we know what AAA is
	if got := p.book.Check(); got.Accepted != 0 || p.pending() != 3 {
		t.Errorf("%v, %d pending", got, p.pending())
	}
	hand("early", "AAA")
	hand("retried", "BBB")
	hand("refused", "CCC")
	line("BBB: lost connection with mx[10.77.0.12] while sending end of data -- message may be sent more than once")
	line(sent, "BBB", to("retried"), "retried")
	if got := p.book.Check(); got.Accepted != 2 || p.pending() != 1 {
		t.Errorf("%v, %d pending", got, p.pending())
	}
	// One dot without a reply excuses one copy.
	if got := p.book.CheckCopies(func(ledger.Arrival, bool) bool { return false }); got.Bound != 2 {
		t.Errorf("%+v, want one for the lost connection, and one for what has no end yet", got)
	}
	line("CCC: to=<%s>, relay=mx[10.77.0.12]:2525, delay=1, delays=0/0/0/1, dsn=5.7.1, status=bounced (host mx[10.77.0.12] said: 550 5.7.1 no)", to("refused"))
	if got := p.diary.breaches(); p.pending() != 0 || len(got) != 1 || !strings.HasPrefix(got[0], "L8") {
		t.Errorf("%d pending, breaches %q", p.pending(), got)
	}
}

// What a real primary left unfinished is no message, and held against it only where
// nobody had disturbed it.
func TestWhatARealPrimaryLeftUnfinished(t *testing.T) {
	for _, disturbed := range []bool{true, false} {
		p := testPeer(t, schedule.Peer{Make: mailserver.OpenSMTPD, Side: schedule.Primary})
		if disturbed {
			p.disturb()()
		}
		if err := os.WriteFile(filepath.Join(p.shelf.box.Path, "new", "1.x"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.read(), p.excuse()); err != nil {
			t.Fatal(err)
		}
		if broken := p.diary.breaches(); len(broken) > 0 == disturbed {
			t.Errorf("disturbed=%v: %q", disturbed, broken)
		}
	}
}

// Letters to or by way of a peer have the shapes that it leaves alone, each in turn.
func TestAmong(t *testing.T) {
	p := &peer{is: schedule.Peer{Make: mailserver.Postfix, Side: schedule.Primary}}
	shapes, seen := p.shapes(false), map[int]bool{}
	for n := range 3 * len(shapes) {
		i := among(shapes, n)
		if seen[i] {
			t.Errorf("letter %d comes twice", i)
		}
		seen[i] = true
	}
	if len(shapes) == 0 || len((*peer)(nil).shapes(true)) <= len(shapes) {
		t.Errorf("%d shapes", len(shapes))
	}
}
