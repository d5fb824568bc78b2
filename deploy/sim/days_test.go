package sim

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
)

var days = flag.Int("days", 0, "how many days the primary of TestDays is away; 0 for some hours")

const (
	lettersPerDay = 1_100
	// hoursAway is how long the primary is away where nobody asks for days.
	hoursAway = 3 * time.Hour
	// returnTime is how long things go on breaking after its return.
	returnTime = 15 * time.Minute
)

// TestDays has the primary away for days, while mail comes in and nodes, disks
// and links break for seconds or for hours. Now and then the primary comes up for a
// minute, takes some messages, and goes without a word about them. Then it is
// back, slow and moody, while the rest goes on to break, and in the end it has
// every message, unaltered, with no more second copies than were to be expected.
// The last line counts.
func TestDays(t *testing.T) {
	away, count := hoursAway, 1
	if *days > 0 {
		away, count = time.Duration(*days)*24*time.Hour, *seeds
	}
	var sum tally
	failed := 0
	for i := range count {
		seed := *first + uint64(i)
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runDays(t, seed, away, &sum) }) {
			failed++
		}
	}
	fmt.Printf("days=%d seeds=%d %s failed=%d\n", *days, count, sum, failed)
}

// A tally is what the last line says.
type tally struct{ messages, lost, altered, duplicates, bound int }

func (c tally) String() string {
	return fmt.Sprintf("messages=%d lost=%d altered=%d duplicates=%d bound=%d", c.messages, c.lost, c.altered, c.duplicates, c.bound)
}

func runDays(t *testing.T, seed uint64, away time.Duration, sum *tally) {
	tell(t, seed, func(t *testing.T, s *story) {
		began := time.Now()
		s.segments = true
		s.adjust, s.rhythm = farApart, slowRhythm
		book := newAccount(s.ledger)
		s.record, s.arriving = book, book.see
		s.begin()
		for _, d := range relayDomains {
			s.guarded(d)
		}

		letters := int(away.Hours() * lettersPerDay / 24)
		due := make([]time.Duration, letters)
		for n := range due {
			due[n] = time.Duration(s.random.Int64N(int64(away)))
		}
		slices.Sort(due)
		sent := make(chan error, 1)
		go func() {
			stats, err := s.sendWith(s.ctx, sender.Options{
				Count: letters, Sessions: 3, Dial: impatient(seed, s.network.Host(senderName).Dial),
				Admit: func(ctx context.Context, n int) bool {
					sleep(ctx, time.Until(began.Add(due[n])))
					return ctx.Err() == nil
				},
			})
			t.Logf("sender: %+v", stats)
			sent <- err
		}()

		for end := began.Add(away); time.Now().Before(end); {
			s.tormentUntil(time.Now().Add(min(inspection, time.Until(end))), append(slices.Clone(clusterFaults), glimpse), unhurried)
			book.inspect(s)
		}
		missing, accepted := s.ledger.Missing()
		t.Logf("after %s: %d recipients accepted, %d of them wait", time.Since(began).Round(time.Minute), accepted, missing)

		s.SetPace(2 * time.Second)
		s.primaryUp()
		s.tormentUntil(time.Now().Add(returnTime), faults, hasty)
		s.SetPace(0)
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		s.drain(s.ctx, t)
		book.inspect(s)

		report := s.ledger.Check()
		totals := s.totals()
		got := tally{messages: len(book.acked), lost: report.Lost, altered: report.Altered}
		got.duplicates, got.bound = book.check(t, totals)
		t.Logf("seed=%d %s; %s unanswered=%d virtual=%s", seed, got, report, report.Unanswered, time.Since(began).Round(time.Second))
		if !report.OK() || report.NotAccepted > 0 || report.Unanswered > 0 || got.messages != letters {
			t.Errorf("the ledger does not balance, with %d letters: %+v", letters, report)
		}
		if totals.Expired > 0 {
			t.Errorf("%d messages outlived %s in %s", totals.Expired, time.Duration(fsm.LifetimeDefault)*time.Millisecond, time.Since(began))
		}
		sum.messages += got.messages
		sum.lost += got.lost
		sum.altered += got.altered
		sum.duplicates += got.duplicates
		sum.bound += got.bound
	})
}

// inspection is how often the account looks messages up: well before the queue
// forgets those that have ended.
const inspection = 6 * time.Hour

// tormentUntil runs faults until then, and leaves everything mended.
func (s *story) tormentUntil(end time.Time, drawn []fault, t tempo) {
	s.t.Helper()
	ctx, done := context.WithDeadline(s.ctx, end)
	defer done()
	names, err := s.torment(ctx, drawn, t)
	s.t.Logf("faults: %s", strings.Join(names, ", "))
	if err != nil {
		s.t.Fatal(err)
	}
	s.awaitReady(nodeNames...)
}

// glimpse is a primary that cannot stay.
var glimpse = fault{"primary for a minute", func(_ context.Context, w *World, _ string) (func() error, error) {
	w.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Drop, Rate: 0.3})
	w.SetPace(time.Duration(5+w.random.IntN(25)) * time.Second)
	down := time.AfterFunc(time.Duration(30+w.random.IntN(90))*time.Second, func() { w.PrimaryDown() })
	return func() error {
		down.Stop()
		w.PrimaryDown()
		w.SetPace(0)
		w.faults.Set()
		return nil
	}, w.PrimaryUp()
}}

// impatient dials connections some of which the client closes soon after a final
// dot, whether or not it has the reply.
func impatient(seed uint64, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	const rate, patienceMax = 0.03, 200 * time.Millisecond // a commit takes about half of that
	var lock sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0x6861737465))
	draw := func() (patience time.Duration, closes bool) {
		lock.Lock()
		defer lock.Unlock()
		return time.Duration(random.Int64N(int64(patienceMax))), random.Float64() < rate
	}
	return func(ctx context.Context, address string) (net.Conn, error) {
		c, err := dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return &impatientConn{c, draw}, nil
	}
}

type impatientConn struct {
	net.Conn
	draw func() (time.Duration, bool)
}

func (c *impatientConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if string(p) == ".\r\n" { // the sender writes the final dot by itself
		if patience, closes := c.draw(); closes {
			time.AfterFunc(patience, func() { c.Conn.Close() })
		}
	}
	return n, err
}

// unhurried is for worlds of days: half of the faults last less than two minutes,
// and some two hours.
var unhurried = tempo{
	lasts: func(r *rand.Rand) time.Duration { return between(r, time.Second, 2*time.Hour) },
	rests: func(r *rand.Rand) time.Duration { return between(r, 10*time.Second, time.Hour) },
}

// An account compares second copies with the bound that is published for them:
// there are no more of them than 250s that the client did not read, final dots
// without a reply, and leases that ended with a dot begun. What is counted is a copy
// of a letter, under another queue id, or of a message for the recipients of one
// domain, who get it in one transaction.
type account struct {
	ledger *ledger.Ledger
	copies copies

	mu     sync.Mutex
	acked  map[ledger.MessageID]bool
	unread map[ledger.MessageID]int // attempts of a letter whose dot got no reply
	ids    map[ledger.MessageID]map[string][]string
	sent   map[part]map[string]int // copies by recipient
	// again are the messages that arrived once more since they were inspected.
	again []string
	wrong []string
}

func newAccount(l *ledger.Ledger) *account {
	return &account{
		ledger: l, acked: map[ledger.MessageID]bool{}, unread: map[ledger.MessageID]int{},
		ids: map[ledger.MessageID]map[string][]string{}, sent: map[part]map[string]int{},
	}
}

// Intent and Outcome record for the ledger what the sender does.
func (a *account) Intent(i ledger.Intent) error { return a.ledger.Intent(i) }

func (a *account) Outcome(o ledger.Outcome) error {
	a.mu.Lock()
	switch o.Result {
	case ledger.OK:
		a.acked[o.ID] = true
	case ledger.Info:
		a.unread[o.ID]++
	}
	a.mu.Unlock()
	return a.ledger.Outcome(o)
}

// see is told of each copy before the primary says that it took it.
func (a *account) see(one ledger.Arrival) {
	a.saw(one)
	a.mu.Lock()
	defer a.mu.Unlock()
	letter, ok := ledger.MarkerOf(one.Recipient)
	if !ok {
		a.wrong = append(a.wrong, "no letter for "+one.Recipient)
		return
	}
	of := a.ids[letter]
	if of == nil {
		of = map[string][]string{}
		a.ids[letter] = of
	}
	if !slices.Contains(of[one.Recipient], one.QueueID) {
		of[one.Recipient] = append(of[one.Recipient], one.QueueID)
	}
}

// saw is told of each copy of anything, and so of reports, before it is said that it was
// taken.
func (a *account) saw(one ledger.Arrival) {
	a.copies.see(one)
	a.mu.Lock()
	defer a.mu.Unlock()
	p := partOf(copyKey{one.Recipient, one.QueueID})
	if a.sent[p] == nil {
		a.sent[p] = map[string]int{}
	}
	if a.sent[p][one.Recipient]++; a.sent[p][one.Recipient] > 1 {
		a.again = append(a.again, one.QueueID)
	}
}

// inspect looks the messages up that arrived once more. Each must be marked.
func (a *account) inspect(s *story) {
	a.mu.Lock()
	again := a.again
	a.again = nil
	a.mu.Unlock()
	for _, id := range again {
		if m, ok := s.message(id); !ok || !m.PossibleDuplicate {
			s.t.Errorf("%s arrived once more, and is not marked (known: %v)", id, ok)
		}
	}
}

// check holds what arrived to the bound, all of it and piece by piece.
func (a *account) check(t *testing.T, totals fsm.Totals) (duplicates, bound int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	unread := 0
	for _, n := range a.unread {
		unread += n
	}
	inbound := 0
	for letter, of := range a.ids {
		extra := 0
		for _, ids := range of {
			extra = max(extra, len(ids)-1)
		}
		if inbound += extra; extra > a.unread[letter] {
			a.wrong = append(a.wrong, fmt.Sprintf("letter %s arrived as %v, with %d unread 250s", letter, of, a.unread[letter]))
		}
	}
	outbound := 0
	for _, of := range a.sent {
		most := 0
		for _, n := range of {
			most = max(most, n)
		}
		outbound += most - 1
	}
	doubts := int(totals.DoubtsReported + totals.DoubtsExpired)
	t.Logf("copies under another id: %d, unread 250s: %d; copies under the same id: %d, dots in doubt: %d reported, %d expired",
		inbound, unread, outbound, totals.DoubtsReported, totals.DoubtsExpired)
	if outbound > doubts || inbound > unread {
		t.Errorf("%d and %d second copies, the bounds are %d and %d", inbound, outbound, unread, doubts)
	}
	slices.SortFunc(a.wrong, cmp.Compare[string])
	for _, w := range append(a.wrong, a.copies.early...) {
		t.Error(w)
	}
	return inbound + outbound, unread + doubts
}
