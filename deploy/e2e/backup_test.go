//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

const (
	readyTime = time.Minute
	// queueTime is how long the sender's queue may take to empty.
	queueTime = time.Minute
	// drainTime covers that the primary's return is seen, which takes half a
	// minute at the most, and the draining.
	drainTime = 2 * time.Minute
)

// binaries is where make build puts them.
func binaries() string {
	if dir := os.Getenv("HOLDFAST_BIN"); dir != "" {
		return dir
	}
	return "../../bin"
}

// A world is a sender, three nodes, a primary that is down, and the ledger.
type world struct {
	t       *testing.T
	ctx     context.Context
	fleet   *fleet.Fleet
	sender  *postfix
	primary *postfix
	sent    *sentLog
	arrived *maildir
	book    *ledger.Ledger
	letters *letter.Generator
	next    int // number of the next letter
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := newDirectory(t)
	serveDNS(t)
	w := &world{t: t, ctx: t.Context(), book: ledger.New()}
	mailboxes := filepath.Join(dir, "mailboxes")
	arrived := filepath.Join(mailboxes, "Maildir")
	if err := os.Mkdir(mailboxes, 0o755); err != nil {
		t.Fatal(err)
	}
	w.sender = newPostfix(t, dir, "sender", addressSender, map[string]string{
		"smtp_bind_address": addressSender,
		// So that each message chooses its target anew.
		"smtp_connection_cache_on_demand": "no",
	})
	settings, err := mailserver.Keeping([]string{"example.test", "example.org"}, arrived)
	if err != nil {
		t.Fatal(err)
	}
	settings["smtpd_authorized_xclient_hosts"] = "127.0.0.1" // where the nodes connect from
	w.primary = newPostfix(t, dir, "primary", addressPrimary, settings)
	w.sent = &sentLog{p: w.sender, book: w.book}
	w.arrived = &maildir{Maildir: mailserver.Maildir{Path: arrived}, book: w.book}
	w.letters = letter.New(letter.Options{Seed: 1, Domains: []string{"example.test", "example.org"}, Sizes: letter.ShapesOfMail, BigAt: -1})

	w.fleet = startNodes(t, dir, true)
	w.ready()
	// One domain by address, the other by the same MX records that the sender
	// uses, in which the nodes must recognise themselves.
	w.holdfast("domain", "put", "example.test", "--to", addressPrimary+":25", "--xclient")
	w.holdfast("domain", "put", "example.org", "--mx")
	for _, n := range w.fleet.Nodes {
		w.until(readyTime, n.Name+" to know the domains", func(ctx context.Context) error {
			s, err := w.fleet.Status(ctx, n)
			if err == nil && len(s.Domains) != 2 {
				err = fmt.Errorf("it knows %d", len(s.Domains))
			}
			return err
		})
	}
	w.sender.start()
	return w
}

func (w *world) until(limit time.Duration, what string, condition func(context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	defer cancel()
	if err := w.fleet.Until(ctx, what, condition); err != nil {
		w.t.Fatalf("%v\nsender's log:\n%s\nprimary's log:\n%s", err, w.sender.tail(), w.primary.tail())
	}
}

func (w *world) ready() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, readyTime)
	defer cancel()
	if err := w.fleet.Ready(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) holdfast(args ...string) {
	w.t.Helper()
	if _, err := w.fleet.Holdfast(w.ctx, w.fleet.Nodes[0], args...); err != nil {
		w.t.Fatal(err)
	}
}

// post gives letters to the sending Postfix, waits until its queue is empty,
// and returns what its log says about their recipients.
func (w *world) post(count int) (deliveries []mailserver.Delivery, recipients int) {
	w.t.Helper()
	var batch []*letter.Letter
	for len(batch) < count {
		if l := w.letters.Letter(w.next); passable(l.Shape) {
			batch = append(batch, l)
			recipients += len(l.Recipients)
			content := mailserver.Folded(l.Content())
			err := w.book.Intent(ledger.Intent{
				ID: l.ID, ReversePath: l.ReversePath, Recipients: l.Recipients, At: time.Now(),
				Octets: ledger.Octets{Size: int64(len(content)), SHA256: ledger.DigestOf(content)},
			})
			if err != nil {
				w.t.Fatal(err)
			}
		}
		w.next++
	}
	taken := ledger.New() // by the sending Postfix; not what is judged
	s, err := sender.New(sender.Options{
		Targets: []string{addressSender + ":25"}, Letter: func(i int) *letter.Letter { return batch[i] },
		Count: count, Sessions: 3, Record: taken, GiveUp: queueTime,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Run(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	if got := s.Stats(); got.Pairs != recipients {
		w.t.Fatalf("the sending Postfix took %d of %d recipients; %d refused", got.Pairs, recipients, got.Refused)
	}
	w.until(queueTime, "the sender's queue to empty", func(context.Context) error {
		deliveries = append(deliveries, w.sent.read(w.t)...)
		if n := w.sender.Queued(); n > 0 {
			return fmt.Errorf("%d in it", n)
		}
		done := 0
		for _, d := range deliveries {
			if d.Status == mailserver.Sent || d.Status == mailserver.Bounced {
				done++
			}
		}
		if done < recipients {
			return fmt.Errorf("the log tells the end of %d of %d", done, recipients)
		}
		return nil
	})
	return deliveries, recipients
}

// expectSent checks that every recipient was sent, at the first attempt, to a
// node.
func (w *world) expectSent(t *testing.T, deliveries []mailserver.Delivery, recipients int) (relays map[string]int) {
	t.Helper()
	relays = make(map[string]int)
	for _, d := range deliveries {
		if d.Status != mailserver.Sent || !strings.Contains(d.Relay, ".holdfast.test[") {
			t.Errorf("%s: to=%s relay=%s status=%s (%s)", d.QueueID, d.Recipient, d.Relay, d.Status, d.Reply)
			continue
		}
		relays[d.Relay]++
	}
	if len(deliveries) != recipients {
		t.Errorf("%d attempts for %d recipients, want one for each", len(deliveries), recipients)
	}
	return relays
}

// drain waits until everything accepted is in the primary's mailbox and no
// node has anything left.
func (w *world) drain() {
	w.t.Helper()
	w.until(drainTime, "the queue to drain", func(ctx context.Context) error {
		w.arrived.read(w.t)
		if missing, accepted := w.book.Missing(); missing > 0 {
			return fmt.Errorf("%d of %d missing: %v", missing, accepted, w.book.MissingRecipients())
		}
		s, err := w.fleet.Status(ctx, w.fleet.Nodes[0])
		if err == nil && (!s.Queue.Idle() || s.Queue.Held > 0) {
			err = fmt.Errorf("%v", s.Queue)
		}
		return err
	})
}

// A sender finds the nodes by MX while the primary is down, by another node
// when one is killed, and the primary gets all of it when it is back.
func TestBackupBetweenPostfixes(t *testing.T) {
	w := newWorld(t)
	t.Run("primary down: the sender delivers through any node", func(t *testing.T) {
		w.t = t
		deliveries, recipients := w.post(45)
		relays := w.expectSent(t, deliveries, recipients)
		if len(relays) != len(w.fleet.Nodes) {
			t.Errorf("relays %v, want all three nodes", relays)
		}
	})
	t.Run("a node killed: through another in the same attempt", func(t *testing.T) {
		w.t = t
		dead, _, err := w.fleet.Leader(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := dead.Kill(); err != nil {
			t.Fatal(err)
		}
		w.ready() // the two that are left have a leader
		deliveries, recipients := w.post(30)
		w.expectSent(t, deliveries, recipients)
		// Postfix shuffles equal preferences, so about a third of the
		// attempts met the dead node first.
		host, _, _ := strings.Cut(dead.SMTP, ":")
		refused := 0
		for _, line := range w.sender.lines() {
			if strings.Contains(line, "["+host+"]:25: Connection refused") {
				refused++
			}
		}
		if refused == 0 {
			t.Error("no attempt met the dead node: this proves nothing")
		}
		if err := dead.Start(); err != nil {
			t.Fatal(err)
		}
		w.ready()
	})
	t.Run("primary up: everything drains, then again after it was down once more", func(t *testing.T) {
		w.t = t
		w.primary.start()
		w.drain()
		w.primary.stop()
		deliveries, recipients := w.post(20)
		w.expectSent(t, deliveries, recipients)
		w.primary.start()
		w.drain()
	})
	w.t = t
	// Only nodes connect to the primary. For one of the domains it was told who gave
	// them the mail.
	var told, untold int
	for _, line := range w.primary.lines() {
		_, client, is := strings.Cut(line, ": client=")
		switch {
		case !is:
		case strings.Contains(client, "["+addressSender+"]"):
			told++
		default:
			untold++
		}
	}
	if told == 0 || untold == 0 {
		t.Errorf("%d messages in the name of their client, %d in a node's", told, untold)
	}
	report := w.book.Check()
	t.Log(report)
	if !report.OK() || report.Delivered != report.Accepted || report.Accepted < 100 {
		t.Errorf("%v, delivered though refused %d, unexpected %d\n%s", report, report.Refused, report.Unexpected, strings.Join(report.Cases, "\n"))
	}
	if report.Duplicates > 0 {
		t.Errorf("%d duplicates, with no reply lost on either side", report.Duplicates)
	}
}
