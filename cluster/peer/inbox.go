package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An inbox is the receiving end of one push stream.
type inbox struct {
	conn   net.Conn
	memory mail.Memory
	done   chan struct{} // closed when its last body is stored and acknowledged

	arriving map[uint64]*arrival // by number; the receiving goroutine's own
	last     uint64              // the greatest number seen

	// acks is what waits to be sent, at most two of each body. A body keeps its
	// place in the window until its last one leaves here, so that a place is always
	// free and storing never waits for the stream.
	acks    chan []*pb.PushAck
	storing sync.WaitGroup

	mu sync.Mutex
	// bodies and octets are what the peer has begun and we have not yet
	// acknowledged: what it may cost us in memory.
	//
	// Invariant: bodies <= windowBodiesMax, and bodies <= 1 or octets <=
	// windowBytesMax.
	bodies int
	octets mail.ByteSize
	sizes  map[uint64]mail.ByteSize
}

// An arrival is a body of which not all frames are here.
type arrival struct {
	number uint64
	ref    mail.BodyRef
	body   *mail.Body // nil once it is longer than its reference says
	tell   bool       // the peer wants to know when it is taken
}

// Push implements the call: one goroutine receives, one per message that
// completed bodies stores them, one acknowledges.
func (v service) Push(stream grpc.BidiStreamingServer[pb.PushFrames, pb.PushAcks]) error {
	info, _ := caller(stream.Context())
	in := &inbox{
		conn:     info.conn,
		memory:   v.s.memory,
		done:     make(chan struct{}),
		arriving: make(map[uint64]*arrival),
		acks:     make(chan []*pb.PushAck, 2*windowBodiesMax),
		sizes:    make(map[uint64]mail.ByteSize),
	}
	if err := v.s.succeed(stream.Context(), info.name, in); err != nil {
		return err
	}
	defer v.s.leave(info.name, in)

	acknowledged := make(chan struct{})
	go func() {
		defer close(acknowledged)
		broken := false
		for acks := range in.acks {
			runtime.Gosched()
			acks = in.gather(acks)
			in.release(acks)
			// Once the stream is broken the acks are drained: the peer sends the
			// bodies again.
			broken = broken || stream.Send(&pb.PushAcks{Acks: acks}) != nil
		}
	}()
	err := in.receive(stream, v.s)
	in.storing.Wait()
	close(in.acks)
	<-acknowledged
	return err
}

// storedDelay is how long word that bodies are stored may wait for other word to go
// with. Whoever waits for a 250 has asked for TAKEN.
const storedDelay = 5 * time.Millisecond

// gather adds to acks what is to be sent in the same message.
func (in *inbox) gather(acks []*pb.PushAck) []*pb.PushAck {
	late := time.NewTimer(storedDelay)
	defer late.Stop()
	for in.patient(acks) {
		select {
		case next, open := <-in.acks:
			if !open {
				return acks
			}
			acks = append(acks, next...)
		case <-late.C:
			return acks
		}
	}
	for { // and what waits already
		select {
		case next, open := <-in.acks:
			if !open {
				return acks
			}
			acks = append(acks, next...)
		default:
			return acks
		}
	}
}

// patient reports whether nobody waits for any of the acks, and the window has room.
func (in *inbox) patient(acks []*pb.PushAck) bool {
	in.mu.Lock()
	roomy := in.bodies < windowBodiesMax/2 && in.octets < windowBytesMax/2
	in.mu.Unlock()
	return roomy && !slices.ContainsFunc(acks, func(a *pb.PushAck) bool { return a.GetCode() != pb.PushAck_STORED })
}

// succeed makes in the peer's inbox. An older one is ended first, with its
// connection, and waited for: a peer that was cut off reconnects long before
// its old connection is found dead.
func (s *Server) succeed(ctx context.Context, name string, in *inbox) error {
	for {
		s.mu.Lock()
		old := s.inboxes[name]
		if old == nil {
			s.inboxes[name] = in
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if old.conn != in.conn { // On the same connection the client has ended it itself.
			_ = old.conn.Close()
		}
		select {
		case <-old.done:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *Server) leave(name string, in *inbox) {
	s.mu.Lock()
	delete(s.inboxes, name)
	s.mu.Unlock()
	close(in.done)
}

// receive takes frames until the stream ends.
func (in *inbox) receive(stream grpc.BidiStreamingServer[pb.PushFrames, pb.PushAcks], s *Server) error {
	for {
		var message frames
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		complete, err := in.takeAll(message.list)
		message.free()
		if err != nil {
			s.log.Warn("push stream refused", "cause", err)
			return err
		}
		if len(complete) > 0 {
			in.storing.Go(func() {
				acks := s.store(complete, func(taken []*pb.PushAck) { in.acks <- taken })
				for _, a := range complete {
					if a.body != nil {
						a.body.Free()
					}
				}
				in.acks <- acks
			})
		}
	}
}

// takeAll adds frames to their bodies, and returns the bodies that are complete.
func (in *inbox) takeAll(list []frame) (complete []*arrival, err error) {
	for i := range list {
		a, err := in.take(&list[i])
		if err != nil {
			return nil, err
		}
		if a != nil {
			complete = append(complete, a)
		}
	}
	return complete, nil
}

// take adds a frame to its body, and returns the body when it is complete.
func (in *inbox) take(f *frame) (*arrival, error) {
	n := f.number
	a := in.arriving[n]
	switch {
	case a != nil && len(f.ref) > 0, a == nil && n <= in.last:
		return nil, status.Errorf(codes.InvalidArgument, "body %d begun twice", n)
	case a == nil:
		ref, err := mail.DecodeBodyRef(f.ref)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "body %d: %s", n, reason(err))
		}
		if err := in.reserve(n, ref); err != nil {
			return nil, err
		}
		a = &arrival{number: n, ref: ref, tell: f.tellTaken}
		if f.checksum != nil {
			a.body = mail.NewBodyOf(in.memory, ref, *f.checksum)
		} else {
			a.body = mail.NewBodyIn(in.memory, ref.Size)
		}
		in.arriving[n], in.last = a, n
	}
	if f.abandoned {
		delete(in.arriving, n)
		in.release([]*pb.PushAck{{Number: n}})
		return nil, nil
	}
	if a.body != nil && a.body.Size()+mail.ByteSize(f.octets()) > a.ref.Size {
		a.body = nil // Its frames go on, unread; the ack says what was wrong.
	}
	if a.body != nil {
		for _, d := range f.data {
			_, _ = a.body.Write(d) // Never fails.
		}
	}
	if !f.last {
		return nil, nil
	}
	delete(in.arriving, n)
	return a, nil
}

// reserve takes a place in the window.
func (in *inbox) reserve(n uint64, ref mail.BodyRef) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if ref.Size > BodyBytesMax {
		return status.Errorf(codes.ResourceExhausted, "body of %d octets, at most %d", ref.Size, BodyBytesMax)
	}
	if in.bodies >= windowBodiesMax || in.bodies > 0 && in.octets+ref.Size > windowBytesMax {
		return status.Errorf(codes.ResourceExhausted, "window exceeded: %d octets beside %d in %d bodies", ref.Size, in.octets, in.bodies)
	}
	in.bodies++
	in.octets += ref.Size
	in.sizes[n] = ref.Size
	return nil
}

func (in *inbox) release(acks []*pb.PushAck) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, ack := range acks {
		if ack.GetCode() == pb.PushAck_TAKEN {
			continue
		}
		n := ack.GetNumber()
		in.bodies--
		in.octets -= in.sizes[n]
		delete(in.sizes, n)
	}
}

// store stores complete bodies, so that they share a sync, and returns their
// acks. Before, it tells of those that it has taken and that are asked about.
func (s *Server) store(complete []*arrival, taken func([]*pb.PushAck)) []*pb.PushAck {
	acks := make([]*pb.PushAck, len(complete))
	var bodies []Arrived
	var at []int
	for i, a := range complete {
		acks[i] = &pb.PushAck{Number: a.number, QueueId: a.ref.ID[:], Code: pb.PushAck_STORED}
		if a.body == nil || a.body.Ref(a.ref.ID) != a.ref {
			acks[i].Code, acks[i].Detail = pb.PushAck_MISMATCH, "size or digest"
			s.log.Warn("pushed body refused", "queue_id", a.ref.ID, "cause", ErrMismatch)
			continue
		}
		bodies, at = append(bodies, Arrived{a.ref, a.body}), append(at, i)
	}
	errs := s.backend.StoreBodies(bodies, func(places []int) {
		var early []*pb.PushAck
		for _, k := range places {
			if complete[at[k]].tell {
				early = append(early, &pb.PushAck{Number: acks[at[k]].Number, QueueId: bodies[k].Ref.ID[:], Code: pb.PushAck_TAKEN})
			}
		}
		if len(early) > 0 {
			taken(early)
		}
	})
	for k, err := range errs {
		if err != nil {
			ack := acks[at[k]]
			ack.Code, ack.Detail = pb.PushAck_FAILED, reason(err)
			s.log.Warn("pushed body not stored", "queue_id", bodies[k].Ref.ID, "cause", fmt.Errorf("store: %w", err))
		}
	}
	return acks
}
