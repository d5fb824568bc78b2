package sim

import (
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
)

// replySlack is how much later than its patience a node may answer, as in a torture
// run.
const replySlack = 5 * time.Second

// A waits judges how long a world's senders waited for each reply.
type waits struct {
	limit time.Duration
	away  func(address string) []ledger.Span // when the senders could not talk to a node

	mu      sync.Mutex
	all     []ledger.Wait
	longest ledger.Wait
}

func newWaits(away func(address string) []ledger.Span) *waits {
	return &waits{limit: config.Default().CommitPatience + replySlack, away: away}
}

func (p *waits) see(w ledger.Wait) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, w)
	if w.Span.To.Sub(w.Span.From) > p.longest.Span.To.Sub(p.longest.Span.From) {
		p.longest = w
	}
}

func (p *waits) late() []ledger.Wait {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ledger.Late(p.all, p.limit, p.away)
}

// check fails the test where a reply was late, and neither came nor was the connection
// closed.
func (p *waits) check(t *testing.T) {
	t.Helper()
	for _, w := range p.late() {
		t.Errorf("%v", w)
	}
	if len(p.all) == 0 {
		t.Error("nobody waited for anything: nothing was shown")
	}
	t.Logf("%d replies; the longest: %v", len(p.all), p.longest)
}

// A beforeDot calls before each final dot.
type beforeDot struct {
	*ledger.Ledger
	call func()
}

func (b beforeDot) Intent(i ledger.Intent) error {
	b.call()
	return b.Ledger.Intent(i)
}

// TestEveryDotIsAnswered: who gives a message to a node without a majority hears
// within the patience that nothing is known of it, and not later.
func TestEveryDotIsAnswered(t *testing.T) {
	tell(t, 831, func(t *testing.T, s *story) {
		p := newWaits(s.away)
		s.waiting = p.see
		s.begin()
		// The majority goes when the dot is on its way, and comes back two minutes
		// later.
		gone := false
		s.record = beforeDot{s.ledger, func() {
			if gone {
				return
			}
			gone = true
			for _, name := range nodeNames {
				s.cutOff(name)
			}
			time.AfterFunc(2*time.Minute, s.network.HealAll)
		}}
		letters := letter.New(letter.Options{Seed: 1, Domains: []string{string(relayDomains[0])}, Sizes: letter.Size4K, BigAt: -1})
		if _, err := s.sendWith(s.ctx, sender.Options{Count: 1, Sessions: 1, Letter: letters.Letter}); err != nil {
			t.Fatal(err)
		}
		p.check(t)
		if w := p.longest; w.For != "the final dot" || w.Span.To.Sub(w.Span.From) < 10*time.Second {
			t.Errorf("the longest wait: %v", w)
		}
		s.primaryUp()
		s.await(time.Hour, "all is delivered", s.empty)
	})
}
