package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// How a primary is spoken to.
const (
	plainly   = "plain"
	pipelined = "pipelining"
	secured   = "TLS"
)

var (
	everyWay = []string{plainly, pipelined, secured}
	inClear  = []string{plainly, pipelined}
	underTLS = []string{secured}
)

// A verdict is what is first reported of a recipient.
type verdict string

// The verdicts.
const (
	isDelivered verdict = "delivered"
	isDoubted   verdict = "in doubt"
	isPutOff    verdict = "deferred, tried"
	isUntried   verdict = "deferred, not tried"
	isFailed    verdict = "failed"
)

func verdictOf(o fsm.RecipientOutcome) verdict {
	switch {
	case o.Outcome == fsm.Delivered:
		return isDelivered
	case o.Outcome == fsm.InDoubt:
		return isDoubted
	case o.Outcome == fsm.Failed:
		return isFailed
	case o.Tried:
		return isPutOff
	}
	return isUntried
}

// connect is the stage before deliverytest's: there Drop refuses the connection
// and Hang does not answer.
const connect = "connect"

// A stageFault is what a primary does, once, to the first of two messages that
// are leased together. The first has two recipients, one and two.
type stageFault struct {
	number int // of the fault
	stage  string
	how    string
	of     string   // what the command line has in it; "" for any
	nth    int      // of the times that the stage is come to so; 0 is the first
	times  int      // in a row; 0 is once
	ways   []string // nil is every way
	long   bool     // the messages are longer than what the network holds
	dot    string   // what a dot is answered over the same connection

	one, two verdict // of the recipients of the first message; "" is delivered
	saw      Sight   // what is reported of the next hop; unless it is Reached, nothing is of the messages
	lost     bool    // the second message goes over another connection
	clear    bool    // the first message goes in the clear where TLS was offered
	// took is how long it is until that is reported, or the outcome of
	// the first message is known, give or take stageSlack.
	took time.Duration
}

// stageSlack is the time that it takes to settle, renew, and report in a batch.
const stageSlack = 2 * time.Second

// both has one verdict for both recipients.
func (f stageFault) both(v verdict) stageFault {
	f.one, f.two = v, v
	return f
}

// octets is how long a reply takes in a tarpit.
func octets(reply string) time.Duration {
	return time.Duration(len(reply+"\r\n")) * deliverytest.TarpitPace
}

const (
	later    = "451 4.3.0 later"
	never    = "554 5.7.1 no"
	goodbye  = "421 4.3.2 going down"
	proceed  = "354 go on"
	nonsense = "what a lovely day"
	doubled  = "250 2.0.0 fine\r\n250 2.0.0 fine"
	mixed    = "250-2.0.0 fine\r\n550 5.0.0 not fine"
	bare     = "250 primary.test"
)

var (
	overlong = "250 " + strings.Repeat("x", 10<<20)
	tooMany  = strings.Repeat("250-X-MORE\r\n", 200) + "250 X-LAST"
)

// stageFaults are the rows of faults 37 to 42, and 44.
func stageFaults() (all []stageFault) {
	add := func(number int, stage string, f stageFault, hows ...string) {
		f.number, f.stage = number, stage
		for _, how := range hows {
			f.how = how
			all = append(all, f)
		}
	}
	// Connection, banner, EHLO: nothing is leased yet, so nothing is reported of the
	// messages, and the next hop is down, or refuses us.
	down, refusing := stageFault{saw: Missed}, stageFault{saw: Barred}
	after := func(d time.Duration, f stageFault) stageFault { f.took = d; return f }
	add(37, connect, down, deliverytest.Drop)
	add(37, connect, after(dialTimeout, down), deliverytest.Hang)

	add(37, deliverytest.Banner, down, deliverytest.Drop, deliverytest.Sever, deliverytest.Leave, nonsense, proceed, mixed, doubled, overlong, deliverytest.Line, deliverytest.Lines)
	add(37, deliverytest.Banner, after(smtpclient.BannerTimeout, down), deliverytest.Hang)
	add(37, deliverytest.Banner, after(octets("220 primary.test ESMTP"), stageFault{}), deliverytest.Tarpit)
	add(37, deliverytest.Banner, stageFault{}, "250 another 2yz will do")
	add(38, deliverytest.Banner, refusing, later, goodbye)
	add(39, deliverytest.Banner, refusing, never)

	add(37, deliverytest.Hello, down, deliverytest.Drop, deliverytest.Sever, nonsense, proceed, mixed, overlong, tooMany, deliverytest.Line, deliverytest.Lines)
	add(37, deliverytest.Hello, after(smtpclient.HelloTimeout, down), deliverytest.Hang, deliverytest.Tarpit)
	add(37, deliverytest.Hello, stageFault{lost: true, ways: inClear}.both(isUntried), deliverytest.Leave, doubled)
	add(37, deliverytest.Hello, stageFault{lost: true, ways: underTLS, clear: true}, deliverytest.Leave) // at STARTTLS
	// What would be the reply to STARTTLS?
	add(37, deliverytest.Hello, stageFault{ways: underTLS, saw: Missed}, "250-primary.test\r\n250 STARTTLS\r\n250 2.0.0 fine")
	add(38, deliverytest.Hello, refusing, later, goodbye)
	add(39, deliverytest.Hello, stageFault{times: 2, saw: Barred}, never) // HELO too
	add(44, deliverytest.Hello, stageFault{clear: true}, bare, never)     // HELO is taken
	add(44, deliverytest.Hello, stageFault{ways: underTLS}, "250-primary.test\r\n250-STARTTLS\r\n250 AUTH PLAIN")

	// STARTTLS and the handshake, with no policy: better in the clear than not at all.
	inTheClear := stageFault{ways: underTLS, clear: true}
	again := stageFault{ways: underTLS, clear: true, lost: true} // over a new connection
	add(38, deliverytest.StartTLS, inTheClear, "454 4.7.0 not now")
	add(39, deliverytest.StartTLS, inTheClear, never)
	add(38, deliverytest.StartTLS, stageFault{ways: underTLS, saw: Barred}, goodbye)
	add(37, deliverytest.StartTLS, again, deliverytest.Drop, deliverytest.Sever, deliverytest.Leave, nonsense, proceed, mixed, "250 fine", overlong, deliverytest.Line, deliverytest.Lines)
	add(37, deliverytest.StartTLS, after(smtpclient.StartTLSTimeout, again), deliverytest.Hang, deliverytest.Tarpit)
	add(37, deliverytest.StartTLS, stageFault{ways: underTLS}, "220 go on\r\n250-said by\r\n250 anybody")

	add(37, deliverytest.Handshake, again, deliverytest.Drop, deliverytest.Sever, nonsense, deliverytest.Line, never)
	add(37, deliverytest.Handshake, after(smtpclient.HandshakeTimeout, again), deliverytest.Hang)

	second := func(f stageFault) stageFault { f.nth, f.ways = 2, underTLS; return f }
	add(37, deliverytest.Hello, second(again), deliverytest.Drop, deliverytest.Sever, nonsense, mixed, overlong, deliverytest.Line, deliverytest.Lines)
	add(37, deliverytest.Hello, second(after(smtpclient.HelloTimeout, again)), deliverytest.Hang, deliverytest.Tarpit)
	add(37, deliverytest.Hello, second(down), proceed)
	add(37, deliverytest.Hello, second(stageFault{lost: true}.both(isUntried)), deliverytest.Leave, doubled)
	add(38, deliverytest.Hello, second(refusing), later, goodbye)
	add(39, deliverytest.Hello, second(stageFault{times: 2, saw: Barred}), never)
	add(44, deliverytest.Hello, second(stageFault{}), bare, never)

	// From MAIL to the content: the next hop is up, whatever it does. What it says to
	// MAIL is held against no recipient, and what ends the connection against nobody.
	lost := stageFault{lost: true}.both(isUntried)
	ends := []string{deliverytest.Drop, deliverytest.Sever, deliverytest.Leave, nonsense, mixed, overlong, deliverytest.Line, deliverytest.Lines, goodbye}
	add(37, deliverytest.Mail, lost, append(ends, proceed, doubled)...)
	add(37, deliverytest.Mail, after(smtpclient.MailTimeout, lost), deliverytest.Hang)
	add(37, deliverytest.Mail, after(octets("250 2.1.0 sender ok"), stageFault{}), deliverytest.Tarpit)
	add(38, deliverytest.Mail, stageFault{}.both(isPutOff), later)
	add(39, deliverytest.Mail, stageFault{}.both(isPutOff), never, "550 5.7.1 your address is blocked", "530 5.7.0 STARTTLS first", "552 5.3.4 too large")
	add(39, deliverytest.Mail, stageFault{lost: true}.both(isPutOff), deliverytest.Last(never))

	toTwo := func(f stageFault) stageFault { f.of = "<two@"; return f }
	only := func(v verdict) stageFault { return toTwo(stageFault{two: v}) } // one is delivered
	add(37, deliverytest.Rcpt, toTwo(lost), append(ends, proceed, doubled, "550 5.1.1 nobody\r\n550 5.1.1 nobody")...)
	add(37, deliverytest.Rcpt, toTwo(after(smtpclient.RecipientTimeout, lost)), deliverytest.Hang)
	add(37, deliverytest.Rcpt, toTwo(after(octets("250 2.1.5 recipient ok"), stageFault{})), deliverytest.Tarpit)
	add(37, deliverytest.Rcpt, only(isDelivered), "251 2.1.5 will forward", "252 2.1.5 will try")
	add(38, deliverytest.Rcpt, only(isPutOff), "450 4.2.0 later", "452 4.5.3 too many", "552 5.5.3 too many")
	add(39, deliverytest.Rcpt, only(isPutOff), "500 5.5.2 what?", "503 5.5.1 MAIL first", "504 5.5.4 no such parameter", "521 5.3.2 no mail here", "530 5.7.0 STARTTLS first", "555 5.5.4 no such parameter")
	add(40, deliverytest.Rcpt, only(isFailed), "550 5.1.1 nobody", "550 nobody", never)
	add(40, deliverytest.Rcpt, stageFault{times: 2}.both(isFailed), "550 5.1.1 nobody")
	add(40, deliverytest.Rcpt, toTwo(stageFault{one: isUntried, two: isFailed, lost: true}), deliverytest.Last("550 5.1.1 nobody"))
	// The second may have been said twice of one.
	add(40, deliverytest.Rcpt, stageFault{of: "<one@", one: isFailed, two: isUntried, lost: true, ways: []string{pipelined, secured}}, deliverytest.Last("550 5.1.1 nobody\r\n550 5.1.1 nobody"))
	// The reply to RCPT two is taken for that to DATA: one must not fail by it.
	add(40, deliverytest.Rcpt, stageFault{of: "<one@", lost: true, ways: everyWay}.both(isUntried), "250 2.1.5 fine\r\n550 5.1.1 nobody")

	add(37, deliverytest.Data, lost, append(ends, "250 fine", doubled, "354 go on\r\n250 2.0.0 taken", "354 go on\r\n354 go on", "554 5.7.1 no\r\n250 2.0.0 taken")...)
	add(37, deliverytest.Data, after(smtpclient.DataTimeout, lost), deliverytest.Hang)
	add(37, deliverytest.Data, after(octets("354 go on"), stageFault{}), deliverytest.Tarpit)
	add(37, deliverytest.Data, stageFault{}, "354-go\r\n354 on")
	add(38, deliverytest.Data, stageFault{}.both(isPutOff), later)
	add(39, deliverytest.Data, stageFault{}.both(isPutOff), "503 5.5.1 RCPT first", "530 5.7.0 STARTTLS first")
	add(40, deliverytest.Data, stageFault{}.both(isFailed), never)
	add(40, deliverytest.Data, stageFault{lost: true}.both(isFailed), deliverytest.Last(never))

	// In the middle of the content: whatever is said there, no dot follows.
	middle := lost
	middle.long = true
	add(37, deliverytest.Body, middle, deliverytest.Drop, deliverytest.Sever, nonsense, "250 2.0.0 taken", goodbye, later, never)
	add(37, deliverytest.Body, after(smtpclient.BlockTimeout, middle), deliverytest.Hang, deliverytest.Tarpit, deliverytest.Line, deliverytest.Lines)
	// The primary reads on, and says another thing to the dot, which must not come.
	for _, dot := range []string{"", never} {
		middle.dot, middle.took = dot, time.Second
		add(42, deliverytest.Body, middle, deliverytest.Unasked("250 2.0.0 taken"), deliverytest.Unasked(never), deliverytest.Unasked(later), deliverytest.Unasked(goodbye), deliverytest.Unasked(nonsense))
	}
	// Of a short message the dot is out by then.
	doubt := stageFault{lost: true}.both(isDoubted)
	add(41, deliverytest.Body, doubt, deliverytest.Drop, deliverytest.Sever)
	add(41, deliverytest.Body, after(smtpclient.DotTimeout, doubt), deliverytest.Hang)

	// The final dot.
	add(41, deliverytest.Dot, doubt, deliverytest.Drop, deliverytest.Sever)
	add(41, deliverytest.Dot, after(smtpclient.DotTimeout, doubt), deliverytest.Hang)
	add(42, deliverytest.Dot, doubt, nonsense, proceed, mixed, overlong, tooMany, deliverytest.Line, deliverytest.Lines)
	add(42, deliverytest.Dot, stageFault{lost: true}, deliverytest.Leave, doubled, "250 2.0.0 taken\r\n554 5.7.1 no", "250 2.0.0 taken\r\n"+goodbye)
	add(42, deliverytest.Dot, stageFault{}, "250-2.0.0 taken\r\n250 2.0.0 indeed", "250", "200 taken")
	add(37, deliverytest.Dot, after(octets("250 2.0.0 taken"), stageFault{}), deliverytest.Tarpit)
	add(38, deliverytest.Dot, stageFault{}.both(isPutOff), later)
	add(38, deliverytest.Dot, stageFault{lost: true}.both(isPutOff), goodbye, deliverytest.Last(later))
	add(39, deliverytest.Dot, stageFault{ways: []string{plainly}}.both(isPutOff), "503 5.5.1 what?")
	add(39, deliverytest.Dot, stageFault{ways: []string{pipelined, secured}, lost: true}.both(isPutOff), "503 5.5.1 what?") // to which?
	add(40, deliverytest.Dot, stageFault{}.both(isFailed), never, "552 5.3.4 too large")
	add(40, deliverytest.Dot, stageFault{lost: true}.both(isFailed), deliverytest.Last(never))

	// QUIT: everything is decided.
	add(37, deliverytest.Quit, stageFault{}, append(ends, deliverytest.Hang, deliverytest.Tarpit, proceed, doubled)...)
	add(38, deliverytest.Quit, stageFault{}, later)
	add(39, deliverytest.Quit, stageFault{}, never)
	return all
}

// TestFaultsAtEachStage: what a primary can do at any stage of a delivery, and what
// becomes of the messages, the connection and the next hop's state. It holds
// faults 37 to 42, and 44. Fault 43, a primary that flaps, is of whole clusters
// (deploy/sim); 45 is of delivery/route, 46 and 47 are TestFault47.
func TestFaultsAtEachStage(t *testing.T) {
	for _, f := range stageFaults() {
		ways := f.ways
		if ways == nil {
			ways = everyWay
		}
		for _, way := range ways {
			t.Run(f.name()+", "+way, func(t *testing.T) { f.test(t, way) })
		}
	}
}

func (f stageFault) name() string {
	name := fmt.Sprintf("%d, %s: %.40q", f.number, f.stage, f.how)
	if f.nth == 2 {
		name += " over TLS"
	}
	if f.long {
		name += fmt.Sprintf(", long, dot %q", f.dot)
	}
	return name
}

// answer answers as the fault says.
func (f stageFault) answer() func(stage, line string) string {
	var mu sync.Mutex
	came, over := 0, false
	return func(stage, line string) string {
		mu.Lock()
		defer mu.Unlock()
		over = over || came > 0 && stage == deliverytest.Banner
		if stage == deliverytest.Dot && f.dot != "" && !over {
			return f.dot
		}
		if stage != f.stage || !strings.Contains(line, f.of) {
			return ""
		}
		came++
		if from := max(f.nth, 1); came < from || came >= from+max(f.times, 1) {
			return ""
		}
		return f.how
	}
}

// A witness keeps what is reported.
type witness struct {
	Queue
	mu    sync.Mutex
	start time.Time
	first map[mail.QueueID]fsm.MessageOutcomes // what was reported first
	at    map[mail.QueueID]time.Duration       // when that was
	all   []fsm.MessageOutcomes
	hops  []Sight
	hopAt time.Duration
	cured bool // the primary takes connections
}

func (w *witness) repaired() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cured = true
}

func (w *witness) isRepaired() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cured
}

func (w *witness) Report(ctx context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error {
	w.mu.Lock()
	for _, o := range outcomes {
		if _, known := w.first[o.ID]; !known {
			w.first[o.ID], w.at[o.ID] = o, time.Since(w.start)
		}
		w.all = append(w.all, o)
	}
	w.mu.Unlock()
	return w.Queue.Report(ctx, token, outcomes)
}

func (w *witness) ReportNextHop(ctx context.Context, d mail.Domain, saw Sight, detail string) error {
	w.mu.Lock()
	if len(w.hops) == 0 {
		w.hopAt = time.Since(w.start)
	}
	w.hops = append(w.hops, saw)
	w.mu.Unlock()
	return w.Queue.ReportNextHop(ctx, d, saw, detail)
}

// hop returns what was reported first of the next hop, zero for nothing, and when.
func (w *witness) hop() (saw Sight, at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.hops) > 0 {
		saw = w.hops[0]
	}
	return saw, w.hopAt
}

// of returns what was reported first of a message, and when.
func (w *witness) of(id mail.QueueID) (fsm.MessageOutcomes, time.Duration, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, ok := w.first[id]
	return o, w.at[id], ok
}

// copies counts the copies of a message that the primary took for a recipient.
func copies(t *testing.T, p *deliverytest.Primary, id mail.QueueID, recipient string) (n int) {
	for _, r := range p.Received() {
		if queueIDOf(t, r.Octets) != id || strings.HasPrefix(r.Reply, "4") || strings.HasPrefix(r.Reply, "5") {
			continue
		}
		for _, to := range r.To {
			if strings.Contains(to, "<"+recipient+">") {
				n++
			}
		}
	}
	return n
}

// bubble runs a test with one node, which delivers over one connection at a time,
// and a primary that does what the fault says.
func (f stageFault) bubble(t *testing.T, way string, test func(*cluster, *Agent, *deliverytest.Primary, *witness)) {
	p := &deliverytest.Primary{Extensions: extensions, Answer: f.answer()}
	switch way {
	case plainly:
		p.Extensions = []string{"SIZE 52428800", "DSN"}
	case secured:
		p.TLS = serverTLS(t)
	}
	w := &witness{first: map[mail.QueueID]fsm.MessageOutcomes{}, at: map[mail.QueueID]time.Duration{}}
	dialled := f.answer()
	change := func(config *Config) {
		config.ConnectionsMax = 3 // one for each node
		w.Queue = config.Queue
		config.Queue = w
		dial := config.Dial
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			answer := dialled(connect, "")
			if w.isRepaired() {
				answer = ""
			}
			switch answer {
			case deliverytest.Drop:
				return nil, errors.New("connection refused")
			case deliverytest.Hang:
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, address)
		}
	}
	before := func(c *cluster) {
		// So that what this node says of the next hop decides.
		c.apply("b", fsm.ReportNextHop{Node: "b", Domain: testDomain})
		// A commit takes time: what the primary does meanwhile is done.
		c.fault = func(call string, after bool, _ fsm.NodeName) error {
			if call == "renew" && after {
				time.Sleep(20 * time.Millisecond)
			}
			return nil
		}
	}
	bubbleWith(t, p, before, change, func(c *cluster, a *Agent) {
		defer time.Sleep(2 * deliverytest.TarpitPace) // The primary sees that the client has gone.
		defer shutdown(t, a, time.Minute)
		w.start = time.Now()
		test(c, a, p, w)
	})
}

// accept makes both messages due at one moment.
func (f stageFault) accept(c *cluster) []mail.QueueID {
	content, another := "Subject: caf\xe9\r\n\r\n.caf\xe9\r\n..\r\n", "Subject: other\r\n\r\nother\r\n"
	if f.long {
		more := strings.Repeat("0123456789abcdef\r\n", 40_000)
		content, another = content+more, another+more
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return []mail.QueueID{
		c.acceptLocked(mail.Envelope{EightBit: true}, content, "one@example.test", "two@example.test"),
		c.acceptLocked(mail.Envelope{}, another, "other@example.test"),
	}
}

func (f stageFault) test(t *testing.T, way string) {
	f.bubble(t, way, func(c *cluster, a *Agent, p *deliverytest.Primary, w *witness) {
		ids := f.accept(c)
		id, other := ids[0], ids[1]

		// What is learnt first.
		var took time.Duration
		want := cmp.Or(f.saw, Reached)
		if want != Reached {
			state := fsm.NextHopDown
			if want == Barred {
				state = fsm.NextHopRefusing
			}
			until(t, f.took+stageSlack, "the next hop is "+state.String(), func() bool { return c.hop().State == state })
			_, took = w.hop()
			if _, _, reported := w.of(id); reported {
				t.Error("an outcome of a message that was not begun")
			}
		} else {
			until(t, f.took+stageSlack, "an outcome", func() bool { _, _, ok := w.of(id); return ok })
			_, took, _ = w.of(id)
		}
		if took < f.took || took > f.took+stageSlack {
			t.Errorf("took %v, want %v", took, f.took)
		}
		if saw, _ := w.hop(); saw != want {
			t.Errorf("next hop reported %v, want %v", saw, want)
		}
		until(t, time.Minute, "an outcome", func() bool { _, _, ok := w.of(id); return ok })
		first, _, _ := w.of(id)
		for i, want := range []verdict{f.one, f.two} {
			if want == "" {
				want = isDelivered
			}
			o := first.Recipients[i]
			if verdictOf(o) != want {
				t.Errorf("recipient %d is %s (%v), want %s", i+1, verdictOf(o), o.Reply, want)
			}
			if (want == isPutOff || want == isFailed) && !strings.Contains(f.how, o.Reply.String()) {
				t.Errorf("reply kept: %v", o.Reply)
			}
		}
		doubted := f.one == isDoubted
		if doubted {
			taken := copies(t, p, id, "one@example.test")
			until(t, time.Minute, "the other", func() bool { return copies(t, p, other, "other@example.test") > 0 })
			time.Sleep(9 * time.Minute)
			if n := copies(t, p, id, "one@example.test"); n != taken {
				t.Errorf("%d copies within doubt_wait, %d before", n, taken)
			}
		}

		// The other message, and one that comes later: nothing is held against them,
		// and no connection is kept from them.
		c.done([]mail.QueueID{other}, time.Minute)
		if sessions := p.Sessions(); want == Reached && (sessions > 1) != f.lost {
			t.Errorf("%d connections", sessions)
		}
		more := c.acceptN(1)
		c.done(more, 40*time.Second)

		// In the end all is delivered, or refused in plain words, and once.
		c.done([]mail.QueueID{id}, 20*time.Minute)
		for i, want := range []verdict{f.one, f.two} {
			state, recipient := c.message(id).Recipients[i].State, []string{"one@example.test", "two@example.test"}[i]
			n := copies(t, p, id, recipient)
			switch {
			case want == isFailed:
				if state != fsm.RecipientHeld || n != 0 {
					t.Errorf("%s is %v, %d copies", recipient, state, n)
				}
			case state != fsm.RecipientDelivered || n < 1 || n > 1 && !doubted:
				t.Errorf("%s is %v, %d copies", recipient, state, n)
			}
		}
		if c.message(id).PossibleDuplicate != doubted {
			t.Errorf("possible duplicate %v", !doubted)
		}
		for _, m := range []mail.QueueID{other, more[0]} {
			if got := c.message(m); got.Parts[0].Attempts != 1 || got.PossibleDuplicate || got.State() != fsm.RecipientDelivered {
				t.Errorf("another message: %+v", got)
			}
		}
		if n := copies(t, p, other, "other@example.test") + copies(t, p, more[0], "user@example.test"); n != 2 {
			t.Errorf("%d copies of two others", n)
		}
		if fell := way == secured && f.clear && f.lost; (a.Stats().TLSFallbacks.Load() == 1) != fell {
			t.Errorf("TLS was given up %d times", a.Stats().TLSFallbacks.Load())
		}
		w.honest(t, c, p)
		f.overTheWire(t, c, p, id, way)
	})
}

// TestFaultsThatStand: the primary does the same to everybody for half an hour, and
// is then repaired. Meanwhile it is not called at all the time, and nothing fails
// but by its 5yz to a message or recipient; afterwards everything else arrives.
func TestFaultsThatStand(t *testing.T) {
	const connectionsMax = 30 * 60 / 15 // one in 15 s, probes and fallbacks included
	for _, f := range stageFaults() {
		if f.nth > 0 || f.times > 0 || f.dot != "" {
			continue
		}
		f.times = 1 << 30
		way := pipelined
		if len(f.ways) == 1 {
			way = f.ways[0]
		}
		t.Run(f.name()+", "+way, func(t *testing.T) {
			f.bubble(t, way, func(c *cluster, a *Agent, p *deliverytest.Primary, w *witness) {
				ids := f.accept(c)
				time.Sleep(30 * time.Minute)
				if n := p.Sessions(); n > connectionsMax {
					t.Errorf("%d connections in half an hour", n)
				}
				s := a.Stats()
				if n := s.Failed.Load(); n > 0 && f.one != isFailed && f.two != isFailed {
					t.Errorf("%d failed", n)
				}
				if n := s.InDoubt.Load(); n > 0 && f.two != isDoubted {
					t.Errorf("%d in doubt", n)
				}
				p.SetAnswer(nil)
				w.repaired()
				ids = append(ids, c.acceptN(1)...)
				c.done(ids, 30*time.Minute)
				for _, id := range ids {
					for i, r := range c.message(id).Recipients {
						if r.State != fsm.RecipientDelivered && !(r.State == fsm.RecipientHeld && r.Reply.Permanent() && (f.one == isFailed || f.two == isFailed)) {
							t.Errorf("%s, recipient %d: %+v", id, i, r)
						}
					}
				}
				w.honest(t, c, p)
			})
		})
	}
}

// honest checks that what was reported delivered was taken, and that what failed
// was refused with a 5yz.
func (w *witness) honest(t *testing.T, c *cluster, p *deliverytest.Primary) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.all {
		envelope := c.message(o.ID).Envelope
		for _, r := range o.Recipients {
			recipient := envelope.Recipients[r.Recipient].Path.Mailbox.String()
			switch {
			case r.Outcome == fsm.Delivered && copies(t, p, o.ID, recipient) == 0:
				t.Errorf("%s to %s is reported delivered, and was not taken", o.ID, recipient)
			case r.Outcome == fsm.Failed && !r.Reply.Permanent():
				t.Errorf("%s to %s is reported failed by %v", o.ID, recipient, r.Reply)
			}
		}
	}
}

// overTheWire checks the octets, the TLS, and what endless replies cost.
func (f stageFault) overTheWire(t *testing.T, c *cluster, p *deliverytest.Primary, id mail.QueueID, way string) {
	for _, r := range p.Received() {
		got := queueIDOf(t, r.Octets)
		if want := string(traceFields(got, c.message(got).Envelope, "")) + string(c.bodies[got]); string(r.Octets) != want {
			t.Errorf("%s is altered: %.300q", got, r.Octets)
		}
		if got == id && r.TLS != (way == secured && !f.clear) {
			t.Errorf("TLS %v", r.TLS)
		}
	}
	if n := p.Poured(); n > 1<<20 {
		t.Errorf("%d octets of an endless reply were taken", n)
	}
}
