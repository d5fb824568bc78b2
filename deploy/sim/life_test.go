package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// What the world may rely on, as a history of operations that are each done at
// one moment between their call and their return:
//
//   - Giving a letter to any node. A 250 names the queue id of the one message that
//     is made of it, however often it is given, since nobody proves to have read
//     the reply; after its removal, of a new one. A 4yz has no effect, now or
//     later. No reply: it may have one, at any time from then on.
//   - Hold, release and remove, through any node, with what they answer.
//   - The delivery of a copy. Its moment is when the holder had its last renewal
//     committed, which is less than half a lease before the dot: then the message
//     was queued. On its way the copy may be held up for as long as a host is
//     frozen.
//   - That an address is of no relay domain, said by any node. This is for good,
//     so it must be the newest that anybody can know.
//   - A look at the queue of a node, and that an address is of a relay domain,
//     are as old as may be, and never about what has yet to come.
const (
	dotsAfterRenewal = 30 * time.Second // half a lease
	onItsWay         = 2 * time.Second  // of a letter, from the permission to its last octet
)

// A deed is one operation's input.
type deed struct {
	about string // letter or domain
	kind  string
	id    string // of the message that it names, or that came of it
	said  string // "" is unknown
}

func (d deed) String() string { return fmt.Sprintf("%s %s %s: %q", d.about, d.kind, d.id, d.said) }

// A chronicle is a history of deeds.
type chronicle struct {
	mu    sync.Mutex
	began time.Time
	deeds []porcupine.Operation
}

// The end of an operation of which nobody knows whether it was done.
const never = math.MaxInt64

func (c *chronicle) now() int64 { return int64(time.Since(c.began)) }

// note writes down a deed that was called then and has just returned.
func (c *chronicle) note(client int, called int64, d deed) {
	returned := c.now()
	if d.said == "" {
		returned = never
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deeds = append(c.deeds, porcupine.Operation{ClientId: client, Input: d, Call: max(called, 0), Output: nil, Return: returned})
}

// arrived writes down that the primary has a copy. Where a host was frozen on its way,
// it may have been on its way for as much longer.
func (c *chronicle) arrived(a ledger.Arrival, frozen func(since time.Time) bool) {
	way := dotsAfterRenewal + onItsWay
	if frozen(time.Now().Add(-way)) {
		way += frozenMax
	}
	c.note(clientPrimary, c.now()-int64(way), deed{letterOf(a.Recipient), "deliver", a.QueueID, "taken"})
}

func letterOf(recipient string) string {
	local, _, _ := strings.Cut(recipient, "@")
	return local
}

// The states of a life.
const (
	queued    = "queued"
	held      = "held"
	delivered = "delivered"
	removed   = "removed"
)

// A life is what is known of one letter: of the message that was made of it last.
type life struct {
	state   string // "" before there is one
	id      string // "" while nobody has been told
	arrived bool   // so the report that it did may come at any time
	past    string // ids of those before, all removed
}

func (l life) was(id string) bool { return strings.Contains(l.past, id) }

// named returns l as a life of the message with that id, and whether it can be.
func (l life) named(id string) (life, bool) {
	if l.state == "" || l.was(id) || l.id != "" && l.id != id {
		return l, false
	}
	l.id = id
	return l, true
}

// given returns what a letter is that was given once more under an id.
func (l life) given(id string) (life, bool) {
	switch l.state {
	case "":
		return life{state: queued, id: id, past: l.past}, true
	case removed:
		if id != "" && (id == l.id || l.was(id)) {
			return l, false
		}
		return life{state: queued, id: id, past: l.past + " " + l.id}, true
	}
	if id == "" {
		return l, true
	}
	return l.named(id)
}

// changed returns what an operator's change makes of a life, and whether it is one.
func (l life) changed(kind string) (life, bool) {
	switch {
	case kind == "hold" && l.state == queued:
		l.state = held
	case kind == "release" && l.state == held:
		l.state = queued
	case kind == "remove" && (l.state == queued || l.state == held):
		l.state = removed
	default:
		return l, false
	}
	return l, true
}

// after returns what a life may be after a deed; nothing where that cannot be.
func (l life) after(d deed) (lives []any) {
	before := []life{l}
	if l.arrived && (l.state == queued || l.state == held) {
		reported := l
		reported.state = delivered
		before = append(before, reported)
	}
	for _, l := range before {
		named, mine := l.named(d.id)
		switch {
		case d.kind == "give" && d.said == "":
			lives = append(lives, l)
			if l.state == "" || l.state == removed {
				unread, _ := l.given("")
				lives = append(lives, unread)
			}
		case d.kind == "give" && d.said == "refused":
			lives = append(lives, l)
		case d.kind == "give":
			if l, ok := l.given(d.id); ok {
				lives = append(lives, l)
			}
		case d.kind == "deliver":
			if mine && l.state == queued {
				named.arrived = true
				lives = append(lives, named)
			}
		case d.kind == "look":
			if mine && named.state == d.said || d.said == removed && l.was(d.id) {
				if mine {
					l = named
				}
				lives = append(lives, l)
			}
		case mine: // an operator's
			done, ok := named.changed(d.kind)
			if ok && (d.said == "done" || d.said == "") {
				lives = append(lives, done)
			}
			if !ok && d.said == "refused" || d.said == "" {
				lives = append(lives, named)
			}
		case d.said == "refused" && l.was(d.id), d.said == "not found" && !l.was(d.id), d.said == "":
			lives = append(lives, l)
		}
	}
	return lives
}

// A served is whether a domain is a relay domain.
type served bool

func (s served) after(d deed) []any {
	yes := bool(s)
	ok := true
	switch d.kind + " " + d.said {
	case "put ", "forget ":
		return []any{s, served(d.kind == "put")}
	case "put done":
		return []any{served(true)}
	case "forget done":
		ok, yes = yes, false
	case "forget not found", "ask no":
		ok = !yes
	case "ask yes":
		ok = yes
	}
	if !ok {
		return nil
	}
	return []any{served(yes)}
}

// lives is the model: each letter and each domain for itself.
var lives = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		of := make(map[string][]porcupine.Operation)
		for _, o := range history {
			about := o.Input.(deed).about
			of[about] = append(of[about], o)
		}
		var parts [][]porcupine.Operation
		for _, about := range slices.Sorted(keysOf(of)) {
			parts = append(parts, of[about])
		}
		return parts
	},
	Init: func() []any { return []any{life{}} },
	Step: func(state, input, _ any) []any {
		d := input.(deed)
		if strings.Contains(d.about, ".") {
			s, _ := state.(served)
			return s.after(d)
		}
		return state.(life).after(d)
	},
	DescribeOperation: func(input, _ any) string { return input.(deed).String() },
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// judge fails the test where a history is none that could be, and shows the first
// such part of it.
func (c *chronicle) judge(t *testing.T) {
	t.Helper()
	model := lives.ToModel()
	for _, part := range lives.Partition(c.deeds) {
		switch porcupine.CheckOperationsTimeout(model, part, time.Minute) {
		case porcupine.Ok:
			continue
		case porcupine.Unknown:
			t.Errorf("no verdict on %s", part[0].Input.(deed).about)
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		var lines []string
		for _, o := range part {
			end := "      never"
			if o.Return != never {
				end = fmt.Sprintf("%11s", time.Duration(o.Return).Round(time.Millisecond))
			}
			lines = append(lines, fmt.Sprintf("%11s - %s  client %d: %s", time.Duration(o.Call).Round(time.Millisecond), end, o.ClientId, o.Input))
		}
		t.Errorf("this cannot be:\n%s", strings.Join(lines, "\n"))
	}
}

// The clients of a history.
const (
	clientPrimary = iota
	clientLooks   // and more: those that give letters and operate
)

const (
	lifeSenders = 4
	lifeOwners  = 3 // operators
	lifeLetters = 60
	lifeTime    = 12 * time.Minute
	lifeWindow  = 4 // letters that are given at a time
)

// TestLivesAreLinear has senders give the same letters to all nodes again and
// again, and operators hold, release and remove them and come and go with domains,
// while nodes crash, freeze and are cut off and their clocks are wrong. What was
// said to them, and what the primary got, must be one of the histories that the
// model has.
func TestLivesAreLinear(t *testing.T) {
	counts := make(map[string]int)
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			var c chronicle
			tell(t, 500+seed, func(t *testing.T, s *story) { s.live(&c) })
			c.judge(t) // outside of the bubble: porcupine has a clock and goroutines of its own
			for _, o := range c.deeds {
				d := o.Input.(deed)
				counts[d.kind+" "+cmp.Or(d.said, "unknown")]++
			}
		})
	}
	t.Logf("deeds: %v", counts)
	for _, must := range []string{"give acknowledged", "give unknown", "deliver taken", "hold done", "hold refused", "remove done", "release done", "look held", "look removed", "put done", "forget done", "ask no", "ask yes"} {
		if counts[must] == 0 {
			t.Errorf("no history has %q", must)
		}
	}
}

func (s *story) live(c *chronicle) {
	s.segments = true
	s.adjust = func(conf *config.Config) { conf.DoubtWait = time.Minute }
	s.clocks = map[string]clock{"n1": {wrong: -40 * time.Minute, drift: -10}, "n2": {}, "n3": {wrong: 3 * time.Hour, drift: 10}}
	c.began = time.Now()
	s.arriving = func(a ledger.Arrival) {
		c.arrived(a, func(since time.Time) bool {
			return slices.ContainsFunc(append([]string{primaryName}, s.names...), func(host string) bool { return s.network.Frozen(host).After(since) })
		})
	}
	s.begin()
	s.primaryUp()
	s.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Drop, Rate: 0.1})
	torment, done := context.WithTimeout(s.ctx, lifeTime)
	defer done()
	var wait sync.WaitGroup
	wait.Go(func() { // away for most of the time, else nothing is ever queued
		for torment.Err() == nil {
			s.PrimaryDown()
			sleep(torment, time.Minute)
			if err := s.PrimaryUp(); err != nil {
				s.t.Error(err)
			}
			sleep(torment, 30*time.Second)
		}
	})
	told := new(toldIDs)
	for n := range lifeSenders + lifeOwners {
		p := &player{s: s, c: c, told: told, number: clientLooks + 1 + n, random: rand.New(rand.NewPCG(s.seed, uint64(n)))}
		wait.Go(func() {
			for torment.Err() == nil {
				if n < lifeSenders {
					p.giveOne(letterNow(c.now(), p.random))
				} else {
					p.operate()
				}
				sleep(torment, time.Duration(p.random.IntN(3000))*time.Millisecond)
			}
		})
	}
	names, err := s.torment(torment, clusterFaults, hasty)
	s.t.Logf("faults: %s", strings.Join(names, ", "))
	if err != nil {
		s.t.Fatal(err)
	}
	wait.Wait()
	s.network.HealAll()
	s.faults.Set()
	time.Sleep(frozenMax)
	s.awaitReady(nodeNames...)
	s.await(time.Hour, "what is not held has arrived", func() bool {
		for _, d := range relayDomains {
			if counts := s.member("n1").Counts(d); counts.Queued > 0 {
				return false
			}
		}
		return true
	})
	time.Sleep(2 * time.Minute)
	// In the end all nodes agree, and nothing is on its way.
	p := &player{s: s, c: c, told: told, number: clientLooks}
	for _, letter := range told.letters() {
		for _, id := range told.of(letter) {
			for _, name := range nodeNames {
				p.look(name, letter, id, c.now())
			}
		}
	}
}

// letterNow draws one of the letters whose time it is.
func letterNow(now int64, r *rand.Rand) int {
	return int(now*lifeLetters/int64(lifeTime)) + r.IntN(lifeWindow)
}

// toldIDs are the queue ids that clients know, by letter.
type toldIDs struct {
	mu  sync.Mutex
	ids map[string][]string
}

func (t *toldIDs) add(letter, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ids == nil {
		t.ids = make(map[string][]string)
	}
	if !slices.Contains(t.ids[letter], id) {
		t.ids[letter] = append(t.ids[letter], id)
	}
}

func (t *toldIDs) of(letter string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ids[letter])
}

func (t *toldIDs) letters() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(keysOf(t.ids))
}

// A player is one client, and does one thing after the other.
type player struct {
	s      *story
	c      *chronicle
	told   *toldIDs
	number int
	random *rand.Rand
}

func (p *player) node() string { return nodeNames[p.random.IntN(len(nodeNames))] }

// giveOne gives a letter to some node, and proves nothing of what it reads.
func (p *player) giveOne(n int) {
	letter := fmt.Sprintf("letter-%d", n)
	called := p.c.now()
	a := p.s.give(p.node(), letterTo{to: letter + "@example.org", text: "this is " + letter}, thenVanish)
	d := deed{about: letter, kind: "give"}
	switch {
	case a.stage != "dot":
		return // it was never sent
	case a.accepted():
		d.id, d.said = a.id, "acknowledged"
		p.told.add(letter, a.id)
	case a.refused():
		d.said = "refused"
	}
	p.c.note(p.number, called, d)
}

// operate does what an operator may do.
func (p *player) operate() {
	switch p.random.IntN(4) {
	case 0:
		p.domain()
		return
	case 1:
		p.ask()
		return
	}
	letter := fmt.Sprintf("letter-%d", letterNow(p.c.now(), p.random))
	ids := p.told.of(letter)
	if len(ids) == 0 {
		return
	}
	id := ids[len(ids)-1]
	if p.random.IntN(5) == 0 {
		id = ids[p.random.IntN(len(ids))]
	}
	q, _ := mail.ParseQueueID(id)
	called := p.c.now()
	switch p.random.IntN(8) {
	case 0, 1, 2:
		p.do(deed{about: letter, kind: "hold", id: id}, fsm.Hold{ID: q}, called)
	case 3, 4:
		p.do(deed{about: letter, kind: "release", id: id}, fsm.Release{ID: q}, called)
	case 5:
		p.do(deed{about: letter, kind: "remove", id: id}, fsm.Remove{ID: q}, called)
	default:
		p.look(p.node(), letter, id, 0)
	}
}

// do has an action committed through some node.
func (p *player) do(d deed, a fsm.Action, called int64) {
	node := p.s.node(p.node())
	if node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.s.ctx, 20*time.Second)
	defer cancel()
	switch result, err := node.node.Member().Do(ctx, a); {
	case errors.Is(err, cluster.ErrNotAccepted) && !errors.Is(err, cluster.ErrOutcomeUnknown):
		return // it has no effect
	case err == nil:
		d.said = result.Verdict.String()
	}
	p.c.note(p.number, called, d)
}

// look reads the queue of one node. What it shows was so at some time since then.
func (p *player) look(name, letter, id string, since int64) {
	node := p.s.node(name)
	if node == nil {
		return
	}
	q, _ := mail.ParseQueueID(id)
	m, ok := node.node.Member().View().Message(q)
	if !ok {
		if since > 0 {
			p.s.t.Errorf("%s of %s, which was acknowledged, is not known to %s", id, letter, name)
		}
		return
	}
	p.c.note(p.number, since, deed{letter, "look", m.ID.String(), m.State().String()})
}

// domain makes a domain a relay domain, or no longer.
func (p *player) domain() {
	name := p.someDomain()
	called := p.c.now()
	if p.random.IntN(2) == 0 {
		p.do(deed{about: string(name), kind: "put"}, fsm.PutDomain{Domain: fsm.Domain{Name: name, Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}}, called)
	} else {
		p.do(deed{about: string(name), kind: "forget"}, fsm.RemoveDomain{Name: name}, called)
	}
}

func (p *player) someDomain() mail.Domain {
	return mail.Domain(fmt.Sprintf("d%d.example", p.c.now()/int64(time.Minute)*2+p.random.Int64N(2)))
}

// ask asks a node, as a client does, whether it takes mail for a domain.
func (p *player) ask() {
	name, called := p.someDomain(), p.c.now()
	c, err := p.s.dial(p.node())
	if err != nil {
		return
	}
	a := c.open(letterTo{to: "dora@" + string(name)})
	c.conn.Close()
	switch {
	case a.stage != "rcpt":
	case a.code == 250:
		p.c.note(p.number, 0, deed{about: string(name), kind: "ask", said: "yes"})
	case a.code >= 500:
		p.c.note(p.number, called, deed{about: string(name), kind: "ask", said: "no"})
	}
}
