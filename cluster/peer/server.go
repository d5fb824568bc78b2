package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// A Server answers the other nodes.
type Server struct {
	backend Backend
	log     *slog.Logger
	grpc    *grpc.Server
	fetches map[Urgency]chan struct{} // one place per body being sent
	memory  mail.Memory               // of the bodies that arrive; nil: the garbage collector's

	mu sync.Mutex
	// inboxes has the push stream of each peer.
	//
	// Invariant: at most one per peer, so that a peer costs one window.
	inboxes map[string]*inbox
}

// NewServer returns a Server that answers from b.
func NewServer(b Backend, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{backend: b, log: log, fetches: map[Urgency]chan struct{}{
		Urgent: make(chan struct{}, fetchesMax), Background: make(chan struct{}, backgroundFetchesMax),
	}, inboxes: make(map[string]*inbox)}
	s.grpc = grpc.NewServer(
		grpc.Creds(connectionCredentials{}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.UnaryInterceptor(nodesOnly),
		grpc.StreamInterceptor(nodesOnlyStream),
		grpc.MaxRecvMsgSize(messageBytesMax),
		grpc.MaxSendMsgSize(messageBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.ConnectionTimeout(prefaceMax),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connectionWindowBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: keepaliveAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.WriteBufferSize(writeBufferBytes),
		grpc.ReadBufferSize(readBufferBytes),
		experimental.BufferPool(newBuffers()),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterPeerServer(s.grpc, service{s: s})
	return s
}

// UseMemory says what bodies that arrive are kept in until they are stored. Call
// it before Serve.
func (s *Server) UseMemory(m mail.Memory) { s.memory = m }

// Serve answers on the connections of ln, which cluster/transport made, until
// Close, or until ln or its port is closed. It returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.grpc.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve peers: %w", err)
	}
	return nil
}

// Close ends the listener, the connections and the calls, and waits for the
// calls: a StoreBody that does not return keeps it waiting.
func (s *Server) Close() { s.grpc.Stop() }

func nodesOnly(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, ok := caller(ctx); !ok {
		return nil, status.Error(codes.Unauthenticated, "nodes only")
	}
	return handler(ctx, req)
}

func nodesOnlyStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if _, ok := caller(stream.Context()); !ok {
		return status.Error(codes.Unauthenticated, "nodes only")
	}
	return handler(srv, stream)
}

// service is the gRPC face of a Server.
type service struct {
	pb.UnimplementedPeerServer
	s *Server
}

// Propose implements the call. It never fails with a status of its own, since
// the caller has to take that for an unknown outcome.
func (v service) Propose(ctx context.Context, r *pb.ProposeRequest) (*pb.ProposeReply, error) {
	reply := &pb.ProposeReply{Outcomes: make([]*pb.ProposeOutcome, len(r.GetProposals()))}
	if len(r.GetProposals()) > ProposalsMax {
		for i := range reply.Outcomes {
			reply.Outcomes[i] = notAppended(&NotAppendedError{Reason: fmt.Sprintf("%d commands", len(r.GetProposals()))})
		}
		return reply, nil
	}
	proposals := make([]Proposal, 0, len(r.GetProposals()))
	at := make([]int, 0, len(r.GetProposals())) // where in the reply each one stands
	for i, p := range r.GetProposals() {
		proposal, refusal := proposalOf(p)
		if refusal != nil {
			reply.Outcomes[i] = notAppended(refusal)
			continue
		}
		proposals, at = append(proposals, proposal), append(at, i)
	}
	if len(proposals) > 0 {
		info, _ := caller(ctx)
		for i, o := range v.s.backend.Propose(ctx, info.name, proposals) {
			reply.Outcomes[at[i]] = outcomeToProto(o)
		}
	}
	return reply, nil
}

func proposalOf(p *pb.Proposal) (Proposal, *NotAppendedError) {
	if len(p.GetCommand()) > ProposeBytesMax {
		return Proposal{}, &NotAppendedError{Reason: fmt.Sprintf("command of %d bytes", len(p.GetCommand())), TooLarge: true}
	}
	proposal := Proposal{Command: p.GetCommand()}
	if len(p.GetBodyRef()) > 0 {
		ref, err := mail.DecodeBodyRef(p.GetBodyRef())
		if err != nil {
			return Proposal{}, &NotAppendedError{Reason: err.Error()}
		}
		proposal.Body = &ref
	}
	return proposal, nil
}

func outcomeToProto(o Outcome) *pb.ProposeOutcome {
	var refusal *NotAppendedError
	switch {
	case o.Err == nil:
		return &pb.ProposeOutcome{Outcome: &pb.ProposeOutcome_Result{Result: o.Result}}
	case errors.As(o.Err, &refusal):
		return notAppended(refusal)
	case errors.Is(o.Err, ErrTooLarge):
		return notAppended(&NotAppendedError{Reason: reason(o.Err), TooLarge: true})
	case errors.Is(o.Err, ErrNotAppended):
		return notAppended(&NotAppendedError{Reason: reason(o.Err)})
	}
	return &pb.ProposeOutcome{Outcome: &pb.ProposeOutcome_Unknown{Unknown: &pb.Unknown{Reason: reason(o.Err)}}}
}

func notAppended(e *NotAppendedError) *pb.ProposeOutcome {
	return &pb.ProposeOutcome{Outcome: &pb.ProposeOutcome_NotAppended{NotAppended: &pb.NotAppended{
		Reason: clip(e.Reason), Leader: clip(e.Leader), TooLarge: e.TooLarge,
	}}}
}

func (v service) Pull(ctx context.Context, r *pb.PullRequest) (*pb.PullReply, error) {
	info, _ := caller(ctx)
	if r.GetHolder() != info.name {
		return nil, status.Errorf(codes.PermissionDenied, "%s asks for a lease of %q", info.name, clip(r.GetHolder()))
	}
	// Which names there are, the backend knows: reports wait for some that are no domains.
	if n := len(r.GetDomain()); n == 0 || n > domainBytesMax {
		return nil, status.Errorf(codes.InvalidArgument, "a domain of %d octets", n)
	}
	seen := r.GetSeen()
	if r.GetMax() > pullMax || seen.GetAnswered() > pullMax || seen.GetDeferred() > pullMax {
		return nil, status.Errorf(codes.InvalidArgument, "a lease of %d messages, %d and %d seen, want at most %d", r.GetMax(), seen.GetAnswered(), seen.GetDeferred(), pullMax)
	}
	if r.GetConnections() > connectionsMax || seen.GetMeanMicros() > uint64(seenMeanMax.Microseconds()) {
		return nil, status.Errorf(codes.InvalidArgument, "%d connections, replies in %d microseconds", r.GetConnections(), seen.GetMeanMicros())
	}
	got, err := v.s.backend.Pull(ctx, PullRequest{
		Holder: info.name, Domain: r.GetDomain(), Max: int(r.GetMax()), Connections: int(r.GetConnections()),
		Seen: Feedback{
			Token: seen.GetToken(), Answered: int(seen.GetAnswered()), Deferred: int(seen.GetDeferred()), Lost: seen.GetLost(),
			Mean: time.Duration(seen.GetMeanMicros()) * time.Microsecond,
		},
	})
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, reason(err))
	}
	reply := &pb.PullReply{Token: got.Token}
	if got.Connections >= 0 {
		connections := uint32(got.Connections)
		reply.Connections = &connections
	}
	for _, id := range got.Messages {
		reply.Messages = append(reply.Messages, id[:])
	}
	return reply, nil
}

func (v service) Health(ctx context.Context, r *pb.HealthRequest) (*pb.HealthReply, error) {
	info, _ := caller(ctx)
	q := Inquiry{ServerID: r.GetServerId(), Brief: r.GetBrief()}
	if q.ServerID != "" && transport.ServerID(q.ServerID).Name() != info.name {
		return nil, status.Errorf(codes.PermissionDenied, "%s asks what was seen of %q", info.name, clip(q.ServerID))
	}
	h := v.s.backend.Health(q)
	reply := &pb.HealthReply{
		ServerId: h.ServerID, Boot: h.Boot, Applied: h.Applied, Leader: h.Leader, Term: h.Term,
		Bodies: h.Bodies, BodyBytes: octets(h.BodyBytes), DiskFreeBytes: octets(h.DiskFree),
		CommandVersion: h.CommandVersion, DiskLow: h.DiskLow, DiskFull: h.DiskFull,
		Hydration: hydrationToProto(h.Hydration), Scrub: scrubToProto(h.Scrub),
	}
	if h.SeenOK {
		reply.Seen = &pb.Seen{Start: h.Seen.Start, Term: h.Seen.Term, VoteTerm: h.Seen.VoteTerm, Index: h.Seen.Index}
	}
	return reply, nil
}

func (v service) Scrub(ctx context.Context, r *pb.ScrubRequest) (*pb.ScrubReport, error) {
	info, _ := caller(ctx)
	for action, code := range scrubActions {
		if code != r.GetAction() {
			continue
		}
		got, err := v.s.backend.Scrub(info.name, action)
		if err != nil {
			return nil, status.Error(codes.FailedPrecondition, reason(err))
		}
		return scrubToProto(got), nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "action %d", r.GetAction())
}

func (v service) Digest(ctx context.Context, r *pb.DigestRequest) (*pb.DigestReply, error) {
	got, err := v.s.backend.Digest(ctx, r.GetAfter())
	switch {
	case errors.Is(err, ErrPassed):
		return nil, status.Error(codes.OutOfRange, reason(err))
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, reason(err))
	}
	return &pb.DigestReply{Index: got.Index, Sum: got.Sum[:], Messages: got.Messages}, nil
}

func (v service) Fetch(r *pb.FetchRequest, stream grpc.ServerStreamingServer[pb.FetchFrame]) error {
	ref, err := mail.DecodeBodyRef(r.GetRef())
	if err != nil {
		return status.Error(codes.InvalidArgument, reason(err))
	}
	if r.GetOffset() > uint64(ref.Size) {
		return status.Errorf(codes.InvalidArgument, "offset %d in a body of %d octets", r.GetOffset(), ref.Size)
	}
	places := v.s.fetches[Urgent]
	if r.GetBackground() {
		places = v.s.fetches[Background]
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	body, err := v.s.backend.OpenBody(ref)
	if errors.Is(err, ErrNotHeld) {
		return status.Error(codes.NotFound, "body not held")
	} else if err != nil {
		return status.Error(codes.Internal, reason(err))
	}
	defer func() { _ = body.Close() }() // It was only read.
	if err := send(stream, body, int64(r.GetOffset()), int64(ref.Size)); err != nil {
		if stream.Context().Err() == nil {
			v.s.log.Warn("body not sent to a peer", "queue_id", ref.ID, "cause", err)
		}
		return err
	}
	return nil
}

// send streams the octets of body from offset up to size.
func send(stream grpc.ServerStreamingServer[pb.FetchFrame], body io.ReadSeeker, offset, size int64) error {
	if _, err := body.Seek(offset, io.SeekStart); err != nil {
		return status.Error(codes.DataLoss, reason(err))
	}
	for offset < size {
		data := make([]byte, min(frameBytesMax, size-offset))
		if _, err := io.ReadFull(body, data); err != nil {
			return status.Error(codes.DataLoss, reason(err))
		}
		if err := stream.Send(&pb.FetchFrame{Data: data}); err != nil {
			return err
		}
		offset += int64(len(data))
	}
	return nil
}

// reason is the text of an error for the wire.
func reason(err error) string { return clip(err.Error()) }

// clip bounds a text from outside or for the wire, and keeps it valid UTF-8,
// which proto3 insists on.
func clip(s string) string {
	if len(s) > reasonBytesMax {
		s = s[:reasonBytesMax]
	}
	return strings.ToValidUTF8(s, "?")
}
