package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc"
)

// A pusher sends bodies to one peer, over one stream at a time.
//
// A parcel is in line, then active (its frames take turns with those of the
// other active ones), then sent, until its ack comes. Active and sent ones
// make up the window. When the stream breaks, the window goes back to the head
// of the line.
type pusher struct {
	name string
	conn *grpc.ClientConn
	log  *slog.Logger
	wake chan struct{} // capacity 1: the sender should look again

	mu sync.Mutex
	// line is what nothing has been sent of on this stream.
	//
	// Invariant: lineOctets is the sum of the sizes in it, and at most
	// queueBytesMax when something was added, or there was nothing else.
	line       []*parcel
	lineOctets mail.ByteSize
	active     []*parcel
	turn       int // whose turn it is in active
	// window has the active and the sent parcels by number.
	//
	// Invariant: at most windowBodiesMax of them, and more than one only with
	// at most windowBytesMax together.
	window       map[uint64]*parcel
	windowOctets mail.ByteSize
	number       uint64 // the last one given out on this stream
	closed       bool
}

// A parcel is one body on its way.
type parcel struct {
	ref    mail.BodyRef
	chunks [][]byte
	done   chan error // capacity 1

	// The rest is guarded by pusher.mu.
	number uint64
	left   bool // nobody waits for it any more
	begun  bool // its reference has been sent on this stream
	chunk  int  // the next octet to send
	offset int
}

func newPusher(name string, conn *grpc.ClientConn, log *slog.Logger) *pusher {
	return &pusher{name: name, conn: conn, log: log, wake: make(chan struct{}, 1), window: make(map[uint64]*parcel)}
}

// push puts a body in line and waits for its ack.
func (p *pusher) push(ctx context.Context, ref mail.BodyRef, chunks [][]byte) error {
	if ref.Size > BodyBytesMax {
		return ErrTooLarge
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &parcel{ref: ref, chunks: chunks, done: make(chan error, 1)}
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return ErrClosed
	case len(p.line) > 0 && p.lineOctets+ref.Size > queueBytesMax:
		octets := p.lineOctets
		p.mu.Unlock()
		return fmt.Errorf("%w: %d octets in line", ErrQueueFull, octets)
	}
	p.line = append(p.line, c)
	p.lineOctets += ref.Size
	p.mu.Unlock()
	p.nudge()
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		p.leave(c)
		return ctx.Err()
	}
}

// leave gives up a parcel: one in line goes, one that is active is abandoned at
// its next turn, one that was sent keeps its place until the ack.
func (p *pusher) leave(c *parcel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.left = true
	if i := slices.Index(p.line, c); i >= 0 {
		p.line = slices.Delete(p.line, i, i+1)
		p.lineOctets -= c.ref.Size
	}
	p.nudge()
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
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.line {
		c.done <- ErrClosed
	}
	p.line, p.lineOctets = nil, 0
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
func (p *pusher) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.PushFrame, pb.PushAck]) error {
	for {
		if frame := p.next(); frame != nil {
			if err := stream.Send(frame); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			continue
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// next returns the frame to send now, or nil when there is none.
func (p *pusher) next() *pb.PushFrame {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.activate()
	if len(p.active) == 0 {
		return nil
	}
	p.turn %= len(p.active)
	c := p.active[p.turn]
	f := &pb.PushFrame{Number: c.number}
	if !c.begun {
		f.Ref, c.begun = c.ref.Encode(), true
	}
	if c.left {
		f.Abandoned = true
		p.retire(p.turn)
		p.unwindow(c)
		return f
	}
	f.Data = c.take()
	if c.chunk == len(c.chunks) {
		f.Last = true
		p.retire(p.turn)
		return f
	}
	p.turn++
	return f
}

// activate moves parcels from the line into the window while there is room.
func (p *pusher) activate() {
	for len(p.line) > 0 && len(p.active) < activeBodiesMax && len(p.window) < windowBodiesMax {
		c := p.line[0]
		if len(p.window) > 0 && p.windowOctets+c.ref.Size > windowBytesMax {
			return
		}
		p.line = slices.Delete(p.line, 0, 1)
		p.lineOctets -= c.ref.Size
		p.number++
		c.number = p.number
		p.window[c.number] = c
		p.windowOctets += c.ref.Size
		p.active = append(p.active, c)
	}
}

// retire takes the parcel at i out of the turns. The next one moves up to i.
func (p *pusher) retire(i int) { p.active = slices.Delete(p.active, i, i+1) }

func (p *pusher) unwindow(c *parcel) {
	delete(p.window, c.number)
	p.windowOctets -= c.ref.Size
	c.chunks = nil
}

// take returns the next octets of the body, at most frameBytesMax.
func (c *parcel) take() []byte {
	for c.chunk < len(c.chunks) && c.offset == len(c.chunks[c.chunk]) {
		c.chunk, c.offset = c.chunk+1, 0
	}
	if c.chunk == len(c.chunks) {
		return nil
	}
	rest := c.chunks[c.chunk][c.offset:]
	n := min(len(rest), frameBytesMax)
	if c.offset += n; c.offset == len(c.chunks[c.chunk]) {
		c.chunk, c.offset = c.chunk+1, 0
	}
	return rest[:n]
}

// receive takes acks until the stream breaks.
func (p *pusher) receive(stream grpc.BidiStreamingClient[pb.PushFrame, pb.PushAck]) error {
	for {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := p.acknowledged(ack); err != nil {
			return err
		}
	}
}

var errAck = errors.New("acknowledgement of a body that was not sent")

func (p *pusher) acknowledged(ack *pb.PushAck) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.window[ack.GetNumber()]
	// A peer that answers for another body, or before the whole body was sent,
	// cannot be believed about any.
	if c == nil || slices.Contains(p.active, c) || string(ack.GetQueueId()) != string(c.ref.ID[:]) {
		return fmt.Errorf("%w: number %d", errAck, ack.GetNumber())
	}
	p.unwindow(c)
	switch ack.GetCode() {
	case pb.PushAck_STORED:
		c.done <- nil
	case pb.PushAck_MISMATCH:
		c.done <- fmt.Errorf("%w: %s", ErrMismatch, clip(ack.GetDetail()))
	default:
		c.done <- fmt.Errorf("%w: %s", ErrNotStored, clip(ack.GetDetail()))
	}
	p.nudge()
	return nil
}

// recall puts what the broken stream carried back to the head of the line, in
// the old order. Storing a body twice is harmless.
func (p *pusher) recall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var again []*parcel
	for _, c := range p.window {
		if c.left {
			continue
		}
		c.begun, c.chunk, c.offset = false, 0, 0
		again = append(again, c)
		p.lineOctets += c.ref.Size
	}
	slices.SortFunc(again, func(a, b *parcel) int { return int(a.number) - int(b.number) })
	p.line = append(again, p.line...)
	p.active, p.turn, p.number = nil, 0, 0
	clear(p.window)
	p.windowOctets = 0
}
