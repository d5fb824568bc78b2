package peer

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
)

// A pushed is what a test knows of one push.
type pushed struct {
	push     *Push
	ref      mail.BodyRef
	done     int // how often done was called
	gone     bool
	detached bool
	broken   bool // a stream broke that carried it
	unread   int  // how often Detach's function was called
}

func (one *pushed) detach() {
	if !one.detached {
		one.detached = true
		one.push.Detach(func() { one.unread++ })
	}
}

// A line is a pusher without a network: the test takes its frames, gives them
// to an inbox and brings back the acks.
type line struct {
	t      *testing.T
	random *rand.Rand
	p      *pusher
	in     *inbox
	all    []*pushed
	there  []*arrival // complete, not yet acknowledged
	bodies []*mail.Body
}

func newLine(t *testing.T, seed uint64) *line {
	l := &line{t: t, random: rand.New(rand.NewPCG(seed, 77)), p: newPusher("b", nil, lineBytesMax, slog.New(slog.DiscardHandler))}
	for _, size := range []mail.ByteSize{0, 1, 700, 40 << 10, 300 << 10, 3 * mail.MiB, windowBytesMax + 1} {
		l.bodies = append(l.bodies, mail.NewBody(make([]byte, size)))
	}
	l.reconnect()
	return l
}

func (l *line) reconnect() {
	for _, one := range l.all {
		if one.push != nil && one.push.number > 0 && l.p.window[one.push.number] == one.push {
			one.broken = true
		}
	}
	l.p.recall()
	l.in = &inbox{arriving: make(map[uint64]*arrival), sizes: make(map[uint64]mail.ByteSize)}
	l.there = nil
}

// push pushes a body, most of them small ones.
func (l *line) push() {
	l.pushThis(l.bodies[min(l.random.IntN(len(l.bodies)), l.random.IntN(len(l.bodies)+3))])
}

func (l *line) pushThis(b *mail.Body) *pushed {
	one := &pushed{ref: b.Ref(mail.MintQueueID(uint64(len(l.all)+1), [10]byte{}))}
	one.push = l.p.push(one.ref, b, Taken, func(err error) {
		if one.done++; one.done > 1 || one.gone {
			l.t.Errorf("%s: done called %d times, abandoned: %v (%v)", one.ref, one.done, one.gone, err)
		}
	})
	l.all = append(l.all, one)
	return one
}

// send takes one message across.
func (l *line) send() bool {
	list := l.p.next()
	octets := 0
	for i := range list {
		octets += list[i].octets()
	}
	if len(list) > framesMax || octets > frameBytesMax {
		l.t.Errorf("%d frames, %d octets in one message", len(list), octets)
	}
	complete, err := l.in.takeAll(list)
	if err != nil {
		l.t.Fatalf("the other side refuses: %v", err)
	}
	for _, a := range complete {
		if a.body == nil || a.body.Size() != a.ref.Size {
			l.t.Errorf("%s arrived with another size", a.ref)
		}
	}
	l.there = append(l.there, complete...)
	return len(list) > 0
}

// take brings back word that any body that is complete there has been taken.
func (l *line) take() {
	if len(l.there) == 0 {
		return
	}
	a := l.there[l.random.IntN(len(l.there))]
	ack := &pb.PushAck{Number: a.number, QueueId: a.ref.ID[:], Code: pb.PushAck_TAKEN}
	before := l.in.bodies
	l.in.release([]*pb.PushAck{ack})
	if err := l.p.acknowledged(ack); err != nil {
		l.t.Errorf("an honest ack: %v", err)
	}
	if l.p.window[a.number] == nil || l.in.bodies != before {
		l.t.Errorf("%s lost its place in the window before it was stored", a.ref)
	}
}

// acknowledge brings back the ack of any body that is complete there.
func (l *line) acknowledge() bool {
	if len(l.there) == 0 {
		return false
	}
	i := l.random.IntN(len(l.there))
	a := l.there[i]
	l.there = append(l.there[:i:i], l.there[i+1:]...)
	ack := &pb.PushAck{Number: a.number, QueueId: a.ref.ID[:], Code: pb.PushAck_STORED}
	l.in.release([]*pb.PushAck{ack})
	if err := l.p.acknowledged(ack); err != nil {
		l.t.Errorf("an honest ack: %v", err)
	}
	return true
}

// check holds the pusher to its invariants.
func (l *line) check() {
	l.t.Helper()
	p := l.p
	var inLine, lagging, inWindow mail.ByteSize
	somewhere := make(map[*Push]bool, len(p.line)+len(p.window))
	for _, c := range p.line {
		somewhere[c] = true
		inLine += c.ref.Size
		if c.detached {
			lagging += c.ref.Size
		}
		if c.abandoned {
			l.t.Errorf("%s is in line and abandoned", c.ref)
		}
	}
	for _, c := range p.window {
		somewhere[c] = true
		inWindow += c.ref.Size
	}
	if inLine != p.lineOctets || lagging != p.laggingOctets || inWindow != p.windowOctets {
		l.t.Fatalf("line %d counted as %d, lagging %d as %d, window %d as %d", inLine, p.lineOctets, lagging, p.laggingOctets, inWindow, p.windowOctets)
	}
	if lagging > laggingBytesMax || len(p.window) > windowBodiesMax || len(p.window) > 1 && inWindow > windowBytesMax || len(p.active) > activeBodiesMax {
		l.t.Fatalf("lagging %d, window %d bodies of %d, %d active", lagging, len(p.window), inWindow, len(p.active))
	}
	if len(p.line) > 1 && inLine > lineBytesMax+windowBytesMax {
		l.t.Fatalf("%d octets in line", inLine)
	}
	for _, c := range p.active {
		if p.window[c.number] != c {
			l.t.Fatalf("%s is active and not in the window", c.ref)
		}
	}
	// Nobody keeps the octets of a body that is neither in line nor in the window,
	// nor reads one that was given back.
	for _, one := range l.all {
		if one.unread > 1 || one.unread > 0 && (somewhere[one.push] || one.broken) {
			l.t.Fatalf("%s: called unread %d times; in line or window: %v, on a stream that broke: %v", one.ref, one.unread, somewhere[one.push], one.broken)
		}
		if c := one.push; c != nil && c.chunks != nil && !somewhere[c] && !c.abandoned {
			l.t.Fatalf("%s is nowhere, and kept in memory", c.ref)
		}
	}
	if l.in.bodies > windowBodiesMax || l.in.bodies > 1 && l.in.octets > windowBytesMax {
		l.t.Fatalf("%d bodies of %d octets over there", l.in.bodies, l.in.octets)
	}
}

// TestPusherKeepsItsBounds: whatever callers, the stream and the peer do, and in
// whatever order, the windows of both sides agree, memory is bounded, and
// everybody who waits hears of his body exactly once.
func TestPusherKeepsItsBounds(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLine(t, seed)
			leavers := int(seed % 3) // how often callers leave
			for range 500 {
				switch action := l.random.IntN(20); {
				case action < 6:
					l.push()
				case action < 12:
					l.send()
				case action < 14 && l.random.IntN(2) == 0:
					l.take()
				case action < 15 && seed%4 > 0: // else the peer stores nothing
					l.acknowledge()
				case action < 15+leavers && len(l.all) > 0:
					one := l.all[l.random.IntN(len(l.all))]
					one.gone = true
					one.push.Abandon()
				case action < 18+leavers && len(l.all) > 0:
					one := l.all[len(l.all)-1-l.random.IntN(min(len(l.all), 8))]
					one.detach()
				case action == 19 && l.random.IntN(8) == 0:
					l.reconnect()
				}
				l.check()
			}
			for l.send() || l.acknowledge() {
				l.check()
			}
			if len(l.p.line) > 0 || len(l.p.window) > 0 || l.in.bodies > 0 || l.in.octets > 0 {
				t.Errorf("%d in line, %d in the window, %d over there", len(l.p.line), len(l.p.window), l.in.bodies)
			}
			for _, one := range l.all {
				if one.done == 0 && !one.gone && !one.detached {
					t.Errorf("%s: nobody was told", one.ref)
				}
				want := 0
				if one.detached && !one.broken {
					want = 1
				}
				if one.unread != want && !one.gone {
					t.Errorf("%s: called unread %d times; detached: %v, on a stream that broke: %v", one.ref, one.unread, one.detached, one.broken)
				}
			}
		})
	}
}

// TestStoppedPeerIsBounded: a peer that acknowledges nothing keeps, of what
// nobody waits for any more, one window and laggingBytesMax in our memory.
func TestStoppedPeerIsBounded(t *testing.T) {
	l := newLine(t, 1)
	waited := mail.NewBody(make([]byte, mail.MiB))
	first := &pushed{ref: waited.Ref(mail.MintQueueID(1<<40, [10]byte{}))}
	for i := range 300 {
		one := &pushed{ref: waited.Ref(mail.MintQueueID(uint64(i+1), [10]byte{}))}
		one.push = l.p.push(one.ref, waited, Taken, func(error) {})
		one.detach()
		l.all = append(l.all, one)
		if i == 100 {
			first.push = l.p.push(first.ref, waited, Taken, func(error) { first.done++ })
		}
		for l.send() {
		}
		l.check()
	}
	if held := l.p.lineOctets + l.p.windowOctets; held > windowBytesMax+laggingBytesMax+mail.MiB {
		t.Errorf("%d octets are held for a peer that is stopped", held)
	}
	for _, one := range l.all {
		inWindow := l.p.window[one.push.number] == one.push
		if waits := one.unread == 0; waits != (inWindow || one.push.detached && !one.push.abandoned) {
			t.Errorf("%s: called unread %d times; in the window: %v, given up: %v", one.ref, one.unread, inWindow, one.push.abandoned)
		}
	}
	l.reconnect() // what was in the window is not waited for either
	if held := l.p.lineOctets + l.p.windowOctets; held > laggingBytesMax+mail.MiB {
		t.Errorf("%d octets are held after the stream broke", held)
	}
	for l.send() || l.acknowledge() {
	}
	if first.done != 1 {
		t.Errorf("the one who waits was told %d times", first.done)
	}
}

// TestAcksOfStrangers: an ack that no honest peer sends tells nobody anything.
func TestAcksOfStrangers(t *testing.T) {
	l := newLine(t, 1)
	whole, part, gone := mail.NewBody([]byte("whole")), mail.NewBody(make([]byte, 3*frameBytesMax)), mail.NewBody([]byte("gone"))
	told := 0
	push := func(n uint64, b *mail.Body) (mail.BodyRef, *Push) {
		ref := b.Ref(mail.MintQueueID(n, [10]byte{}))
		return ref, l.p.push(ref, b, Taken, func(error) { told++ })
	}
	ref, _ := push(1, whole)
	partRef, _ := push(2, part)
	l.send()
	goneRef, abandoned := push(3, gone)
	l.p.mu.Lock()
	l.p.activate()
	l.p.mu.Unlock()
	abandoned.Abandon()
	ack := func(n uint64, ref mail.BodyRef, code pb.PushAck_Code) error {
		return l.p.acknowledged(&pb.PushAck{Number: n, QueueId: ref.ID[:], Code: code})
	}
	for what, err := range map[string]error{
		"number 0":             ack(0, ref, pb.PushAck_STORED),
		"a number never given": ack(99, ref, pb.PushAck_STORED),
		"another body":         ack(1, partRef, pb.PushAck_STORED),
		"not yet sent":         ack(2, partRef, pb.PushAck_STORED),
		"given up, not told":   ack(3, goneRef, pb.PushAck_STORED),
		"no queue id":          l.p.acknowledged(&pb.PushAck{Number: 1, Code: pb.PushAck_STORED}),
		"nothing":              l.p.acknowledged(new(pb.PushAck)),
	} {
		if err == nil || told != 0 {
			t.Errorf("%s: %v, %d were told", what, err, told)
		}
	}
	if err := ack(1, ref, pb.PushAck_STORED); err != nil || told != 1 {
		t.Errorf("honest: %v, %d were told", err, told)
	}
	if err := ack(1, ref, pb.PushAck_STORED); err == nil || told != 1 {
		t.Errorf("twice: %v, %d were told", err, told)
	}
	for l.send() {
	}
	if err := ack(3, goneRef, pb.PushAck_STORED); err == nil || told != 1 {
		t.Errorf("of a body given up: %v, %d were told", err, told)
	}
	if err := ack(2, partRef, 77); err != nil || told != 2 {
		t.Errorf("of an unknown kind: %v, %d were told", err, told)
	}
}

// TestBodyOfABrokenStream is never said to be unread: what the stream had queued may
// read it still, whatever becomes of the push afterwards.
func TestBodyOfABrokenStream(t *testing.T) {
	for what, then := range map[string]func(l *line, one *pushed){
		"detached when it was answered": func(l *line, one *pushed) {
			l.send()
			l.acknowledge()
			one.detach()
		},
		"detached in line, and answered": func(l *line, one *pushed) {
			one.detach()
			l.send()
			l.acknowledge()
		},
		"detached in line, and dropped": func(l *line, one *pushed) {
			one.detach()
			for !one.push.abandoned {
				l.pushThis(mail.NewBody(make([]byte, laggingBytesMax/2))).detach()
			}
		},
	} {
		l := newLine(t, 1)
		one := l.pushThis(mail.NewBody([]byte("octets")))
		l.send()
		l.reconnect()
		then(l, one)
		if one.unread != 0 || !one.push.again {
			t.Errorf("%s: called unread %d times", what, one.unread)
		}
	}
}

// TestDetachOfAnAbandonedPush, or a second one, calls nothing, whatever has become
// of the push: its memory would be given back twice.
func TestDetachOfAnAbandonedPush(t *testing.T) {
	for what, then := range map[string]func(l *line, one *pushed) (calls int){
		"abandoned in line": func(l *line, one *pushed) int {
			one.push.Abandon()
			one.detach()
			return 0
		},
		"abandoned when it was sent, and answered": func(l *line, one *pushed) int {
			l.send()
			one.push.Abandon()
			l.acknowledge()
			one.detach()
			return 0
		},
		"abandoned when it was sent, answered behind the detaching": func(l *line, one *pushed) int {
			l.send()
			one.push.Abandon()
			one.detach()
			l.acknowledge()
			return 0
		},
		"detached when it was answered": func(l *line, one *pushed) int {
			l.send()
			l.acknowledge()
			one.detach()
			return 1
		},
		"detached in line, and answered": func(l *line, one *pushed) int {
			one.detach()
			l.send()
			l.acknowledge()
			return 1
		},
	} {
		l := newLine(t, 1)
		one := l.pushThis(mail.NewBody([]byte("octets")))
		want := then(l, one)
		one.push.Detach(func() { t.Errorf("%s: another Detach called its function", what) })
		if one.unread != want {
			t.Errorf("%s: called unread %d times, want %d", what, one.unread, want)
		}
		l.check()
	}
	// A second one in between takes nothing from the first.
	l := newLine(t, 1)
	one := l.pushThis(mail.NewBody([]byte("octets")))
	one.detach()
	one.push.Detach(func() { t.Error("the second Detach called its function") })
	l.send()
	l.acknowledge()
	if one.unread != 1 {
		t.Errorf("called unread %d times", one.unread)
	}
}
