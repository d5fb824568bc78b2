package delivery

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	testDomain = mail.Domain("example.test")
	primaryAt  = "192.0.2.10:25"
)

var errLost = errors.New("answer lost")

// A cluster is the replicated queue without replication: the real state machine
// under a lock, with a leader that expires leases and lets time pass, and faults
// on the way to it and back. Every final dot that the primary sees is checked
// against its log.
type cluster struct {
	t       *testing.T
	primary *deliverytest.Primary
	stop    func()
	agents  []*Agent
	ctx     context.Context

	mu      sync.Mutex
	state   *fsm.State
	index   fsm.Index
	changed chan struct{}
	bodies  map[mail.QueueID][]byte
	order   []mail.QueueID
	renewed map[fsm.Token]time.Time // when the leader applied the last grant or renewal
	sent    map[fsm.Token]time.Time // when the last committed renewal was sent
	begun   map[mail.QueueID]fsm.Token
	token   map[mail.QueueID]fsm.Token // of the last grant
	reports [][]fsm.MessageOutcomes    // as they came, repeats included
	hops    []fsm.ReportNextHop
	dots    int
	// fault is asked before a call is applied and, with after set, when it was
	// applied and before the answer is given.
	fault func(call string, after bool, node fsm.NodeName) error
	// openBody, if set, replaces what OpenBody gives.
	openBody func(id mail.QueueID, content []byte) (io.ReadSeekCloser, error)
	reached  func(node fsm.NodeName) bool // whether the node reaches the primary; called with mu held
	barred   func(node fsm.NodeName) bool // whether the primary refuses the node, as RefusedAlarm was told
	lost     int                          // hints that a connection was lost, without a wish
}

func newCluster(t *testing.T, p *deliverytest.Primary) *cluster {
	c := &cluster{
		t: t, primary: p, state: fsm.New(), changed: make(chan struct{}),
		bodies: map[mail.QueueID][]byte{}, renewed: map[fsm.Token]time.Time{}, sent: map[fsm.Token]time.Time{},
		begun: map[mail.QueueID]fsm.Token{}, token: map[mail.QueueID]fsm.Token{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.ctx = ctx
	c.stop = func() { // Also after a test that failed half-way.
		cancel()
		for _, a := range c.agents {
			_ = a.Shutdown(ctx)
		}
	}
	p.OnDot(c.checkDot)
	c.apply("leader", fsm.PutSettings{Settings: fsm.Settings{Voters: 3}})
	c.apply("leader", fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}}})
	go c.lead()
	return c
}

// apply is one entry.
func (c *cluster) apply(node fsm.NodeName, a fsm.Action) fsm.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applyLocked(node, a)
}

func (c *cluster) applyLocked(node fsm.NodeName, a fsm.Action) fsm.Result {
	c.index++
	r, _ := c.state.Apply(c.index, fsm.Command{Node: node, Action: a})
	if c.index%64 == 0 || len(c.order) < 20 { // it looks at every message
		if err := c.state.Check(); err != nil {
			c.t.Errorf("state after %T: %v", a, err)
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return r
}

// lead expires leases by its own clock and ticks.
func (c *cluster) lead() {
	for n := 1; sleep(c.ctx, time.Second); n++ {
		c.mu.Lock()
		for _, l := range c.state.Leases() {
			if time.Since(c.renewed[l.Token]) >= LeaseDuration+time.Second {
				c.applyLocked("leader", fsm.ExpireLeases{Token: l.Token, Renewal: l.Renewal})
			}
		}
		if n%10 == 0 {
			c.applyLocked("leader", fsm.Tick{Elapsed: 10_000})
		}
		c.mu.Unlock()
	}
}

// checkDot holds each final dot against the log: a committed renewal under the
// message's current token named it, and the last committed renewal was sent less
// than D/2 ago.
func (c *cluster) checkDot(r deliverytest.Received) {
	id := queueIDOf(c.t, r.Octets)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dots++
	token := c.token[id]
	switch {
	case c.begun[id] != token:
		c.t.Errorf("dot of %s under token %d, begun under %d", id, token, c.begun[id])
	case time.Since(c.sent[token]) >= LeaseDuration/2:
		c.t.Errorf("dot of %s %v after the last committed renewal was sent", id, time.Since(c.sent[token]))
	}
}

func queueIDOf(t *testing.T, octets []byte) mail.QueueID {
	_, rest, ok := bytes.Cut(octets, []byte("id "))
	if !ok || len(rest) < 26 {
		t.Errorf("no queue id in %.200q", octets)
		return mail.QueueID{}
	}
	id, err := mail.ParseQueueID(string(rest[:26]))
	if err != nil {
		t.Errorf("queue id: %v", err)
	}
	return id
}

// accept makes a message due for each content given, all at one moment: nobody
// can be granted some of them before the others are there.
func (c *cluster) accept(contents ...string) []mail.QueueID {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []mail.QueueID
	for _, content := range contents {
		ids = append(ids, c.acceptLocked(mail.Envelope{}, content, "user@example.test"))
	}
	return ids
}

// acceptN makes n messages due, as accept does.
func (c *cluster) acceptN(n int) []mail.QueueID {
	var contents []string
	for i := range n {
		contents = append(contents, fmt.Sprintf("Subject: %d\r\n\r\n.body %d\r\n", i, i))
	}
	return c.accept(contents...)
}

func (c *cluster) acceptFor(e mail.Envelope, content string, to ...string) mail.QueueID {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acceptLocked(e, content, to...)
}

// acceptTraced is acceptFor with the trace that is given.
func (c *cluster) acceptTraced(trace mail.Trace, content string, to ...string) mail.QueueID {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acceptEnvelope(mail.Envelope{Trace: trace}, content, to...)
}

func (c *cluster) acceptLocked(e mail.Envelope, content string, to ...string) mail.QueueID {
	c.t.Helper()
	e.Trace = mail.Trace{Hello: "client.test", Client: netip.MustParseAddr("198.51.100.7"), Node: "mx1.backup.test", Protocol: "ESMTPS", TLS: "TLS1.3", Received: 1_700_000_000}
	return c.acceptEnvelope(e, content, to...)
}

func (c *cluster) acceptEnvelope(e mail.Envelope, content string, to ...string) mail.QueueID {
	c.t.Helper()
	n := len(c.order)
	id := mail.MintQueueID(uint64(n)+1, [10]byte{byte(n), byte(n >> 8)})
	e.From = mail.ReversePath{Mailbox: mail.Mailbox{Local: fmt.Sprintf("sender%d", n), Host: "client.test"}}
	for _, a := range to {
		p, err := mail.ParseForwardPath(a, true)
		if err != nil {
			c.t.Fatal(err)
		}
		e.Recipients = append(e.Recipients, mail.Recipient{Path: p, Domain: p.Domain()})
	}
	digest := mail.Digest{byte(n), byte(n >> 8), 1}
	if r := c.applyLocked("leader", fsm.Accept{Envelope: e, Body: mail.BodyRef{ID: id, Size: mail.ByteSize(len(content)), Digest: digest}}); r.Verdict != fsm.Done {
		c.t.Fatalf("accept: %+v", r)
	}
	c.order = append(c.order, id)
	c.bodies[id] = []byte(content)
	return id
}

func (c *cluster) message(id mail.QueueID) fsm.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.state.Message(id)
	if !ok {
		c.t.Fatalf("message %s is gone", id)
	}
	return m
}

func (c *cluster) domain() (fsm.Domain, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Domain(testDomain)
}

func (c *cluster) counts() fsm.Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Counts(testDomain)
}

func (c *cluster) hop() fsm.NextHop {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.NextHop(testDomain)
}

// states returns how many recipients are in each state.
func (c *cluster) states(ids []mail.QueueID) map[fsm.RecipientState]int {
	out := map[fsm.RecipientState]int{}
	for _, id := range ids {
		for _, r := range c.message(id).Recipients {
			out[r.State]++
		}
	}
	return out
}

// node is one node's view.
type node struct {
	*cluster
	name        fsm.NodeName
	rank, nodes int
}

func (n node) call(ctx context.Context, name string, apply func() error) error {
	ask := func(after bool) error {
		n.mu.Lock()
		f := n.fault
		n.mu.Unlock()
		if f == nil {
			return ctx.Err()
		}
		if err := f(name, after, n.name); err != nil {
			return err
		}
		return ctx.Err()
	}
	if err := ask(false); err != nil {
		return err
	}
	n.mu.Lock()
	err := apply()
	n.mu.Unlock()
	if err != nil {
		return err
	}
	return ask(true)
}

func (n node) Work() []Work {
	n.mu.Lock()
	defer n.mu.Unlock()
	hop, counts := n.state.NextHop(testDomain), n.state.Counts(testDomain)
	if counts.Due == 0 && counts.Leased == 0 && hop.State == fsm.NextHopUp && (n.barred == nil || !n.barred(n.name)) {
		return nil
	}
	d, _ := n.state.Domain(testDomain)
	return []Work{{Domain: d, NextHop: hop, Due: counts.Due, Rank: n.rank, Nodes: n.nodes}}
}

func (n node) WorkFor(name mail.Domain) (Work, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d, ok := n.state.Domain(name)
	return Work{Domain: d, NextHop: n.state.NextHop(name), Due: n.state.Counts(name).Due, Rank: n.rank, Nodes: n.nodes}, ok
}

func (n node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n node) Pull(ctx context.Context, w Wish) (l Lease, err error) {
	l.Connections = -1
	if w.Max == 0 {
		n.mu.Lock()
		defer n.mu.Unlock()
		if w.Seen.Lost {
			n.lost++
		}
		return l, nil
	}
	err = n.call(ctx, "pull", func() error {
		var ids []mail.QueueID
		for id := range n.state.Due(w.Domain) {
			if ids = append(ids, id); len(ids) == w.Max {
				break
			}
		}
		if len(ids) == 0 {
			return nil
		}
		r := n.applyLocked(n.name, fsm.GrantLeases{Holder: n.name, Domain: w.Domain, Messages: ids})
		l.Token = fsm.Token(n.index)
		n.renewed[l.Token] = time.Now()
		for _, id := range r.Messages {
			n.token[id] = l.Token
			m, _ := n.state.Message(id)
			l.Messages = append(l.Messages, Message{ID: id, Envelope: m.Envelope, Recipients: m.Queued(w.Domain), Body: m.Body})
		}
		return nil
	})
	return l, err
}

func (n node) Renew(ctx context.Context, token fsm.Token, request fsm.RequestID, begun []mail.QueueID) (stop []mail.QueueID, err error) {
	sent := time.Now()
	if len(begun) > beginWindow {
		n.t.Errorf("%d messages named at once", len(begun))
	}
	err = n.call(ctx, "renew", func() error {
		r := n.applyLocked(n.name, fsm.RenewLeases{Holder: n.name, Token: token, Request: request, Begun: begun})
		if r.Verdict == fsm.NotFound {
			return ErrLeaseEnded
		}
		stop = r.Messages
		n.renewed[token] = time.Now()
		if !sent.Before(n.sent[token]) {
			n.sent[token] = sent
		}
		for _, id := range begun {
			if m, _ := n.state.Message(id); len(m.Parts) > 0 && m.Parts[0].Lease == token && m.Parts[0].Begun {
				n.begun[id] = token
			}
		}
		return nil
	})
	return stop, err
}

func (n node) Report(ctx context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error {
	// A cluster with older nodes does not understand it.
	if d, _ := n.domain(); fsm.VersionOf(fsm.RecordOutcomes{Messages: outcomes}) > 1 && d.Bounce != fsm.BounceAlways {
		n.t.Errorf("outcomes that say more than the domain's policy: %+v", outcomes)
	}
	n.mu.Lock()
	n.reports = append(n.reports, outcomes)
	n.mu.Unlock()
	return n.call(ctx, "report", func() error {
		n.applyLocked(n.name, fsm.RecordOutcomes{Holder: n.name, Token: token, Messages: outcomes})
		return nil
	})
}

func (n node) ReportNextHop(ctx context.Context, d mail.Domain, saw Sight, detail string) error {
	return n.call(ctx, "nexthop", func() error {
		r := fsm.ReportNextHop{Node: n.name, Domain: d, Up: saw == Reached, Refused: saw == Barred, Detail: detail}
		n.hops = append(n.hops, r)
		n.applyLocked(n.name, r)
		return nil
	})
}

type openContent struct{ *bytes.Reader }

func (openContent) Close() error { return nil }

func (n node) OpenBody(_ context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.openBody != nil {
		return n.openBody(ref.ID, n.bodies[ref.ID])
	}
	return openContent{bytes.NewReader(n.bodies[ref.ID])}, nil
}

// agent starts the agent of one node.
func (c *cluster) agent(name fsm.NodeName, rank, nodes int, change func(*Config)) *Agent {
	start := time.Now()
	config := Config{
		Node: name, Hostname: string(name) + ".backup.test", Queue: node{c, name, rank, nodes},
		Router: route.New(route.Config{}), BootID: uint64(rank) + 1,
		Boot:   func() time.Duration { return time.Since(start) },
		Random: func() float64 { return 0.5 },
		TLS:    &tls.Config{InsecureSkipVerify: true},
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			c.mu.Lock()
			reached := c.reached == nil || c.reached(name)
			c.mu.Unlock()
			if address != primaryAt {
				c.t.Errorf("dialled %s", address)
			}
			if !reached {
				return nil, errors.New("connection refused")
			}
			client, server := deliverytest.Pipe()
			go c.primary.Serve(server)
			return client, nil
		},
	}
	if testing.Verbose() && os.Getenv("HOLDFAST_TEST_LOG") != "" {
		config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if change != nil {
		change(&config)
	}
	a, err := New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	a.Start()
	c.agents = append(c.agents, a)
	return a
}

// bubble runs a test with one node.
func bubble(t *testing.T, p *deliverytest.Primary, test func(c *cluster, a *Agent)) {
	bubbleWith(t, p, nil, nil, test)
}

func bubbleWith(t *testing.T, p *deliverytest.Primary, before func(*cluster), change func(*Config), test func(c *cluster, a *Agent)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, p)
		defer c.stop()
		if before != nil {
			before(c)
		}
		a := c.agent("a", 0, 3, change)
		synctest.Wait() // Its first look is over: what is accepted at one moment is leased at once.
		test(c, a)
		shutdown(t, a, time.Minute)
	})
}

func shutdown(t *testing.T, a *Agent, patience time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// until waits, in the bubble's time, for a condition.
func until(t *testing.T, patience time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !condition() {
		if time.Since(start) > patience {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(start)
}

// done waits until nothing of the ids is queued.
func (c *cluster) done(ids []mail.QueueID, patience time.Duration) time.Duration {
	c.t.Helper()
	left := ids // In order, so that a long wait for many does not ask for all each time.
	return until(c.t, patience, "all messages ended", func() bool {
		for len(left) > 0 && c.states(left[:1])[fsm.RecipientQueued] == 0 {
			left = left[1:]
		}
		return len(left) == 0
	})
}

// exactlyOnce checks that each message arrived once, octet for octet; what was
// refused at its dot has not.
func (c *cluster) exactlyOnce(ids []mail.QueueID) {
	c.t.Helper()
	copies := map[mail.QueueID]int{}
	for _, r := range c.primary.Received() {
		id := queueIDOf(c.t, r.Octets)
		if !strings.HasPrefix(r.Reply, "4") && !strings.HasPrefix(r.Reply, "5") {
			copies[id]++
		}
		if want := string(traceFields(id, c.message(id).Envelope, "")) + string(c.bodies[id]); string(r.Octets) != want {
			c.t.Errorf("%s is altered: got %.300q, want %.300q", id, r.Octets, want)
		}
	}
	for _, id := range ids {
		if copies[id] != 1 {
			c.t.Errorf("%s arrived %d times", id, copies[id])
		}
	}
}

func at(stage string, answer string) func(string, string) string {
	return func(s, _ string) string {
		if s == stage {
			return answer
		}
		return ""
	}
}
