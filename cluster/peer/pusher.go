package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc"
)

// A pusher sends bodies to one peer, over one stream at a time.
//
// A push is in line, then active (its frames take turns with those of the other
// active ones), then sent, until its ack comes. Active and sent ones make up the
// window. When the stream breaks, the window goes back to the head of the line.
type pusher struct {
	name string
	conn *grpc.ClientConn
	log  *slog.Logger
	wake chan struct{} // capacity 1: the sender should look again

	lineBytesMax mail.ByteSize

	mu sync.Mutex
	// line is what nothing has been sent of on this stream.
	//
	// Invariant: lineOctets is the sum of the sizes in it, and at most
	// lineBytesMax when something was added, or there was nothing else.
	line       []*Push
	lineOctets mail.ByteSize
	// laggingOctets are those of the detached ones in line.
	//
	// Invariant: at most laggingBytesMax.
	laggingOctets mail.ByteSize
	active        []*Push
	turn          int // whose turn it is in active
	// window has the active and the sent pushes by number.
	//
	// Invariant: at most windowBodiesMax of them, and more than one only with
	// at most windowBytesMax together.
	window       map[uint64]*Push
	windowOctets mail.ByteSize
	number       uint64 // the last one given out on this stream
	closed       bool
}

// A Push is one body on its way to one peer. A nil Push has failed already.
type Push struct {
	ref    mail.BodyRef
	sum    *mail.Checksum // nil where the body was not hashed to ref
	pusher *pusher
	when   Told
	done   func(error)

	// The rest is guarded by pusher.mu.
	chunks    [][]byte
	unread    func() // of a detached one: see Detach
	number    uint64
	abandoned bool // nobody wants it any more
	detached  bool // nobody waits for it any more
	taken     bool // the peer has it whole; done has been called
	answered  bool // the peer has stored it, or said why not
	again     bool // it was on another stream before
	begun     bool // its reference has been sent on this stream
	chunk     int  // the next octet to send
	offset    int
}

func newPusher(name string, conn *grpc.ClientConn, most mail.ByteSize, log *slog.Logger) *pusher {
	return &pusher{name: name, conn: conn, lineBytesMax: most, log: log, wake: make(chan struct{}, 1), window: make(map[uint64]*Push)}
}

// push puts a body in line.
func (p *pusher) push(ref mail.BodyRef, body *mail.Body, when Told, done func(error)) *Push {
	if ref.Size > BodyBytesMax {
		done(ErrTooLarge)
		return nil
	}
	c := &Push{ref: ref, pusher: p, chunks: body.Chunks(), when: when, done: done}
	if body.Ref(ref.ID) == ref {
		c.sum = new(body.Checksum())
	}
	if err := p.enqueue(c); err != nil {
		done(err)
		return nil
	}
	p.nudge()
	return c
}

func (p *pusher) enqueue(c *Push) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return ErrClosed
	case len(p.line) > 0 && p.lineOctets+c.ref.Size > p.lineBytesMax:
		return fmt.Errorf("%w: %d octets in line", ErrQueueFull, p.lineOctets)
	}
	p.line = append(p.line, c)
	p.lineOctets += c.ref.Size
	return nil
}

// Abandon gives a push up: one in line goes, one that is active is broken off at
// its next turn, one that was sent keeps its place until the ack. Done is not
// called any more, but may be running.
func (c *Push) Abandon() {
	if c == nil {
		return
	}
	p := c.pusher
	p.mu.Lock()
	c.abandoned = true
	p.dropLocked(c)
	p.mu.Unlock()
	p.nudge()
}

// Detach says that nobody waits for a push any more. It goes on as long as its
// peer is not too far behind: see laggingBytesMax. Unread is called once its
// peer has answered, or the push was given up, and so nothing here reads the body
// any more; at once where that is so already. It is never called where a stream
// broke that may still read the body. It must not block.
func (c *Push) Detach(unread func()) {
	if c == nil {
		unread()
		return
	}
	for _, unread := range c.detach(unread) {
		unread()
	}
}

// detach returns what is to be called once the lock is free.
func (c *Push) detach(unread func()) (calls []func()) {
	p := c.pusher
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.detached || c.abandoned {
		return nil
	}
	c.detached = true
	if c.answered {
		if c.again {
			return nil
		}
		return []func(){unread}
	}
	c.unread = unread
	if !slices.Contains(p.line, c) {
		return nil
	}
	p.laggingOctets += c.ref.Size
	for p.laggingOctets > laggingBytesMax {
		oldest := p.line[slices.IndexFunc(p.line, func(c *Push) bool { return c.detached })]
		oldest.abandoned = true
		p.dropLocked(oldest)
		if !oldest.again {
			calls = append(calls, oldest.unread)
		}
	}
	return calls
}

// dropLocked takes a push out of the line, if it is there.
func (p *pusher) dropLocked(c *Push) {
	if i := slices.Index(p.line, c); i >= 0 {
		p.takeLocked(i)
	}
}

// takeLocked takes the push at i out of the line.
func (p *pusher) takeLocked(i int) *Push {
	c := p.line[i]
	p.line = slices.Delete(p.line, i, i+1)
	p.lineOctets -= c.ref.Size
	if c.detached {
		p.laggingOctets -= c.ref.Size
	}
	return c
}

func (p *pusher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run keeps a stream to the peer until ctx ends.
func (p *pusher) run(ctx context.Context) {
	defer p.close()
	pause := reconnectMin
	for ctx.Err() == nil {
		if awaitReady(ctx, p.conn, false) != nil {
			return
		}
		began := time.Now()
		err := p.stream(ctx)
		p.recall()
		if ctx.Err() != nil {
			return
		}
		p.log.Info("push stream to peer broke", "peer", p.name, "cause", err)
		if time.Since(began) > reconnectMax {
			pause = reconnectMin
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, reconnectMax)
	}
}

// close fails whatever is still waited for.
func (p *pusher) close() {
	p.mu.Lock()
	line := p.line
	p.closed = true
	p.line, p.lineOctets, p.laggingOctets = nil, 0, 0
	p.mu.Unlock()
	for _, c := range line {
		if !c.taken {
			c.done(ErrClosed)
		}
	}
}

// stream opens a push stream and works it until it breaks.
func (p *pusher) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewPeerClient(p.conn).Push(ctx)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	received := make(chan error, 1)
	go func() {
		defer cancel() // Ends the sender.
		received <- p.receive(stream)
	}()
	sendErr := p.send(ctx, stream)
	cancel()
	// The receiver sees the status with which the peer ended the stream; the
	// sender only that it ended.
	return errors.Join(<-received, sendErr)
}

// send sends frames as the window allows, until ctx ends or the stream breaks.
func (p *pusher) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.PushFrames, pb.PushAcks]) error {
	for {
		if next := p.next(); len(next) > 0 {
			if err := stream.SendMsg(&frames{list: next}); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			continue
		}
		select {
		case <-p.wake:
			// Whoever is about to push goes first: one message then carries it all.
			runtime.Gosched()
		case <-ctx.Done():
			return nil
		}
	}
}

// next returns the frames to send now, none when there are none: as many as one
// message may have.
func (p *pusher) next() []frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []frame
	for room := frameBytesMax; room > 0 && len(list) < framesMax; {
		f, ok := p.frameLocked(room)
		if !ok {
			break
		}
		room -= f.octets()
		list = append(list, f)
	}
	return list
}

// frameLocked returns the next frame, with at most room octets.
func (p *pusher) frameLocked(room int) (frame, bool) {
	p.activate()
	if len(p.active) == 0 {
		return frame{}, false
	}
	p.turn %= len(p.active)
	c := p.active[p.turn]
	f := frame{number: c.number}
	if !c.begun {
		f.ref, f.checksum, f.tellTaken, c.begun = c.ref.Encode(), c.sum, c.when == Taken, true
	}
	if c.abandoned {
		f.abandoned = true
		p.retire(p.turn)
		p.unwindow(c)
		return f, true
	}
	f.data = c.take(room)
	if c.chunk == len(c.chunks) {
		f.last = true
		p.retire(p.turn)
		return f, true
	}
	p.turn++
	return f, true
}

// activate moves pushes from the line into the window while there is room.
func (p *pusher) activate() {
	for len(p.line) > 0 && len(p.active) < activeBodiesMax && len(p.window) < windowBodiesMax {
		if len(p.window) > 0 && p.windowOctets+p.line[0].ref.Size > windowBytesMax {
			return
		}
		c := p.takeLocked(0)
		p.number++
		c.number = p.number
		p.window[c.number] = c
		p.windowOctets += c.ref.Size
		p.active = append(p.active, c)
	}
}

// retire takes the push at i out of the turns. The next one moves up to i.
func (p *pusher) retire(i int) { p.active = slices.Delete(p.active, i, i+1) }

func (p *pusher) unwindow(c *Push) {
	delete(p.window, c.number)
	p.windowOctets -= c.ref.Size
	c.chunks = nil
}

// take returns the next octets of the body, at most room, where they lie.
func (c *Push) take(room int) [][]byte {
	var pieces [][]byte
	for ; c.chunk < len(c.chunks); c.chunk, c.offset = c.chunk+1, 0 {
		rest := c.chunks[c.chunk][c.offset:]
		if room == 0 && len(rest) > 0 {
			break
		}
		n := min(len(rest), room)
		if n > 0 {
			pieces = append(pieces, rest[:n:n])
		}
		room -= n
		if n < len(rest) {
			c.offset += n
			break
		}
	}
	return pieces
}

// receive takes acks until the stream breaks.
func (p *pusher) receive(stream grpc.BidiStreamingClient[pb.PushFrames, pb.PushAcks]) error {
	for {
		acks, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, ack := range acks.GetAcks() {
			if err := p.acknowledged(ack); err != nil {
				return err
			}
		}
		p.nudge()
	}
}

var errAck = errors.New("acknowledgement of a body that was not sent")

func (p *pusher) acknowledged(ack *pb.PushAck) error {
	c, told, err := p.sent(ack)
	if err != nil || c == nil {
		return err
	}
	switch code := ack.GetCode(); {
	case told: // and whoever was told does not wait any more
	case code == pb.PushAck_TAKEN, code == pb.PushAck_STORED:
		c.done(nil)
	case code == pb.PushAck_MISMATCH:
		c.done(fmt.Errorf("%w: %s", ErrMismatch, clip(ack.GetDetail())))
	default:
		c.done(fmt.Errorf("%w: %s", ErrNotStored, clip(ack.GetDetail())))
	}
	if ack.GetCode() == pb.PushAck_TAKEN {
		return nil
	}
	// It was answered: nobody else changes these two any more.
	if c.unread != nil && !c.again {
		c.unread()
	}
	return nil
}

// sent takes the push that an ack is about out of the window, if it is the last
// one. It is nil where nobody wants it any more; told says that an ack before
// this one has ended the wait for it.
func (p *pusher) sent(ack *pb.PushAck) (c *Push, told bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c = p.window[ack.GetNumber()]
	// A peer that answers for another body, or before the whole body was sent,
	// cannot be believed about any.
	if c == nil || slices.Contains(p.active, c) || string(ack.GetQueueId()) != string(c.ref.ID[:]) {
		return nil, false, fmt.Errorf("%w: number %d", errAck, ack.GetNumber())
	}
	told, c.taken = c.taken, true
	if ack.GetCode() != pb.PushAck_TAKEN {
		p.unwindow(c)
		c.answered = true
	}
	if c.abandoned {
		return nil, told, nil
	}
	return c, told, nil
}

// recall puts what the broken stream carried back to the head of the line, in
// the old order. Storing a body twice is harmless. What nobody waits for is left
// to the peer to fetch.
func (p *pusher) recall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var again []*Push
	for _, c := range p.window {
		if c.abandoned || c.detached {
			c.chunks = nil
			continue
		}
		// What the broken stream has still queued may read the body for a while.
		c.begun, c.chunk, c.offset, c.again = false, 0, 0, true
		again = append(again, c)
		p.lineOctets += c.ref.Size
	}
	slices.SortFunc(again, func(a, b *Push) int { return int(a.number) - int(b.number) })
	p.line = append(again, p.line...)
	p.active, p.turn, p.number = nil, 0, 0
	clear(p.window)
	p.windowOctets = 0
}
