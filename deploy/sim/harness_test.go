package sim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An arrivals records what the primary took.
type arrivals struct {
	mu  sync.Mutex
	all []ledger.Arrival
}

func (a *arrivals) see(one ledger.Arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, one)
}

// of returns the arrivals for one recipient.
func (a *arrivals) of(recipient string) []ledger.Arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []ledger.Arrival
	for _, one := range a.all {
		if one.Recipient == recipient {
			found = append(found, one)
		}
	}
	return found
}

// A story is a world with three empty nodes that are not started, for tests
// that tell one sequence of events.
type story struct {
	*World
	t       *testing.T
	ctx     context.Context
	arrived *arrivals
}

// tell runs a story in a bubble. What the nodes log is shown if it fails.
func tell(t *testing.T, seed uint64, run func(t *testing.T, s *story)) {
	t.Helper()
	dir := t.TempDir()
	tail := new(tailLog)
	defer func() {
		if t.Failed() && testing.Verbose() {
			t.Logf("the end of the log:\n%s", tail.buf.String())
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w, err := NewWorld(seed, nodeNames, dir, slog.New(slog.NewTextHandler(tail, nil)))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		s := &story{World: w, t: t, ctx: t.Context(), arrived: new(arrivals)}
		w.arriving = s.arrived.see
		run(t, s)
		w.fellLock.Lock()
		defer w.fellLock.Unlock()
		if len(w.fell) > 0 {
			t.Errorf("nodes failed that nobody had broken: %s", strings.Join(w.fell, "; "))
		}
	})
}

// begin starts all nodes and registers the relay domains.
func (s *story) begin() {
	s.t.Helper()
	s.start(nodeNames...)
	s.register()
}

// register tells nodes that run of the relay domains.
func (s *story) register() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	if err := s.PutDomains(ctx); err != nil {
		s.t.Fatal(err)
	}
	s.awaitReady(nodeNames...)
}

func (s *story) start(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if err := s.Start(s.ctx, name); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *story) primaryUp() {
	s.t.Helper()
	if err := s.PrimaryUp(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) member(name string) *fsm.State { return s.nodes[name].node.Member().View() }

func (s *story) awaitReady(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.await(2*time.Minute, name+" can commit", func() bool { return s.nodes[name].node.Member().Ready() == nil })
	}
}

// await polls until something holds, and fails the test if it does not within
// that time.
func (s *story) await(within time.Duration, what string, holds func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for !holds() {
		if !time.Now().Before(deadline) {
			s.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leader waits for a node that leads and has caught up, and returns it with the
// two others.
func (s *story) leader() (leader string, others []string) {
	s.t.Helper()
	s.await(2*time.Minute, "a leader", func() bool {
		leader = s.Leader()
		return leader != "" && s.nodes[leader].node.Member().Ready() == nil
	})
	return leader, othersThan(leader)
}

func othersThan(name string) []string { return without(nodeNames, name) }

func (s *story) cutOff(name string) {
	for _, other := range othersThan(name) {
		s.network.Cut(name, other)
	}
}

// message finds a message by id on a node that runs, by what has committed
// anywhere.
func (s *story) message(id string) (fsm.Message, bool) {
	s.t.Helper()
	parsed, err := mail.ParseQueueID(id)
	if err != nil {
		s.t.Fatalf("queue id %q: %v", id, err)
	}
	var best *fsm.State
	for _, name := range s.names {
		if p := s.nodes[name]; p != nil {
			if v := p.node.Member().View(); best == nil || v.Applied() > best.Applied() {
				best = v
			}
		}
	}
	if best == nil {
		return fsm.Message{}, false
	}
	return best.Message(parsed)
}

func (s *story) awaitState(id string, within time.Duration, want fsm.RecipientState) {
	s.t.Helper()
	s.await(within, fmt.Sprintf("%s is %s", id, want), func() bool {
		m, ok := s.message(id)
		return ok && m.State() == want
	})
}

// do has an action committed.
func (s *story) do(a fsm.Action) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := s.Do(ctx, a); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) queueID(id string) mail.QueueID {
	s.t.Helper()
	parsed, err := mail.ParseQueueID(id)
	if err != nil {
		s.t.Fatal(err)
	}
	return parsed
}

// commands are those in the log on a node's disk, the newest first.
func (w *World) commands(name string) iter.Seq[fsm.Command] {
	return func(yield func(fsm.Command) bool) {
		disk := w.disks[name].raft
		first, last := disk.Bounds()
		for i := last; i >= first && i > 0; i-- {
			entry, ok := disk.Entry(i)
			if !ok || entry.Type != raft.LogCommand {
				continue
			}
			if c, err := fsm.DecodeCommand(entry.Data); err == nil && !yield(c) {
				return
			}
		}
	}
}

// holders counts the disks that have the octets somewhere in their spool.
func (w *World) holders(octets string) []string {
	var names []string
	for _, name := range nodeNames {
		dir := filepath.Join(w.config(name).DataDir, "spool")
		for _, file := range w.disks[name].spool.Names(dir) {
			content, err := w.disks[name].spool.ReadFile(filepath.Join(dir, file))
			if err == nil && bytes.Contains(content, []byte(octets)) {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

// A letterTo is a hand-written message.
type letterTo struct {
	to   string
	text string // one line, unique to the letter
	// What the sender says besides.
	notify string // NOTIFY of RFC 3461, "" for none
	header string // fields, each with its line end
}

func (l letterTo) parameters() string {
	if l.notify == "" {
		return ""
	}
	return " NOTIFY=" + l.notify
}

// An attempt is how one transaction ended.
type attempt struct {
	code  int    // of the last reply; 0 where the connection ended without one
	stage string // at which the last reply, or none, came
	id    string // the queue id of a 250 to the dot
	text  string
	err   error
}

func (a attempt) accepted() bool { return a.stage == "dot" && a.code == 250 }
func (a attempt) silent() bool   { return a.stage == "dot" && a.code == 0 }
func (a attempt) refused() bool  { return a.code >= 400 }

// How a client goes on after the dot.
type farewell int

const (
	thenRead   farewell = iota // read the 250, say NOOP, QUIT: proof that it was read
	thenVanish                 // QUIT in one packet with the dot: no proof
)

// A client speaks SMTP to one node, a command at a time.
type client struct {
	conn net.Conn
	in   *bufio.Reader
}

// patience is how long a client waits for a reply. Longer than anything a node
// may take: a node that lets it pass hangs.
const patience = 5 * time.Minute

func (s *story) dial(node string) (*client, error) {
	conn, err := s.network.Host(senderName).Dial(s.ctx, node+":"+smtpPort)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReader(conn)}, nil
}

var errHangs = errors.New("the node neither answers nor closes")

// reply reads one reply. Code 0 is a connection that ended.
func (c *client) reply() (int, string, error) {
	c.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		line, err := c.in.ReadString('\n')
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			return 0, "", errHangs
		}
		if err != nil || len(line) < 4 {
			return 0, line, err
		}
		if line[3] == '-' {
			continue
		}
		code, err := strconv.Atoi(line[:3])
		return code, strings.TrimSpace(line[4:]), err
	}
}

func (c *client) say(line string) (int, string, error) {
	if _, err := c.conn.Write([]byte(line + "\r\n")); err != nil {
		return 0, "", err
	}
	return c.reply()
}

// open reads the banner and says EHLO, MAIL, RCPT.
func (c *client) open(l letterTo) attempt {
	code, text, err := c.reply()
	if code != 220 {
		return attempt{code: code, stage: "banner", text: text, err: err}
	}
	for _, step := range []struct{ stage, line string }{
		{"ehlo", "EHLO sender.test"}, {"mail", "MAIL FROM:<joan@sender.test>"}, {"rcpt", "RCPT TO:<" + l.to + ">" + l.parameters()},
	} {
		if code, text, err = c.say(step.line); code != 250 {
			return attempt{code: code, stage: step.stage, text: text, err: err}
		}
	}
	return attempt{code: 250, stage: "rcpt"}
}

// transmit says DATA and the message, up to the dot.
func (c *client) transmit(l letterTo) attempt {
	code, text, err := c.say("DATA")
	if code != 354 {
		return attempt{code: code, stage: "data", text: text, err: err}
	}
	_, err = fmt.Fprintf(c.conn, "%sSubject: test\r\n\r\n%s\r\n", l.header, l.text)
	return attempt{code: 354, stage: "data", err: err}
}

// dot says the dot and reads the answer to it.
func (c *client) dot(f farewell) attempt {
	end := ".\r\n"
	if f == thenVanish {
		end += "QUIT\r\n"
	}
	if _, err := c.conn.Write([]byte(end)); err != nil {
		return attempt{stage: "dot", err: err}
	}
	code, text, err := c.reply()
	a := attempt{code: code, stage: "dot", text: text, err: err}
	if _, id, ok := strings.Cut(text, "queued as "); ok {
		a.id = strings.TrimSpace(id)
	}
	if code == 250 && f == thenRead {
		_, _, _ = c.say("NOOP")
		_, _, _ = c.say("QUIT")
	}
	return a
}

// give runs one whole transaction with a node.
func (s *story) give(node string, l letterTo, f farewell) attempt {
	c, err := s.dial(node)
	if err != nil {
		return attempt{stage: "connect", err: err}
	}
	defer c.conn.Close()
	if a := c.open(l); a.code != 250 {
		return a
	}
	if a := c.transmit(l); a.code != 354 || a.err != nil {
		return a
	}
	return c.dot(f)
}

// mustGive is give where nothing else than a 250 is right.
func (s *story) mustGive(node string, l letterTo, f farewell) string {
	s.t.Helper()
	a := s.give(node, l, f)
	if !a.accepted() || a.id == "" {
		s.t.Fatalf("%s did not take %q: %+v", node, l.text, a)
	}
	return a.id
}

// giveUntilTaken retries at the nodes in turn, as a sender does.
func (s *story) giveUntilTaken(l letterTo, f farewell, nodes ...string) attempt {
	s.t.Helper()
	for n := range 600 {
		a := s.give(nodes[n%len(nodes)], l, f)
		s.lawful(a)
		if a.accepted() {
			return a
		}
		time.Sleep(time.Second)
	}
	s.t.Fatalf("nobody takes %q", l.text)
	return attempt{}
}

// lawful fails the test when a node hangs, or refuses for good what it must
// take some time.
func (s *story) lawful(a attempt) {
	s.t.Helper()
	if a.code >= 500 || errors.Is(a.err, errHangs) {
		s.t.Errorf("a node answers %d at %s: %s (%v)", a.code, a.stage, a.text, a.err)
	}
}

// settleDown waits until the queue is empty everywhere, and nothing is on its
// way.
func (s *story) settleDown() {
	s.t.Helper()
	s.await(3*time.Hour, "the queue is empty", s.empty)
	time.Sleep(2 * time.Minute)
}

// copiesOf waits until the queue is empty everywhere and returns how often the
// letter arrived.
func (s *story) copiesOf(l letterTo) int {
	s.t.Helper()
	s.settleDown()
	return len(s.arrived.of(l.to))
}

// totals returns what the leader counts.
func (s *story) totals() fsm.Totals {
	s.t.Helper()
	leader, _ := s.leader()
	return s.member(leader).Totals()
}
