package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Config sets Peers up.
type Config struct {
	// Dial opens a gRPC connection to the named node: transport's DialPeer.
	Dial func(ctx context.Context, name, address string) (net.Conn, error)
	// Address tells where the named node listens now. It is asked anew for each
	// connection, so a node may move. It must not block.
	Address func(name string) (string, bool)
	// LineBytesMax bounds what lies in line for one peer, unless it is a single
	// body, and does not count what is in the window; 64 MiB. Somebody waits for
	// each body in line, or laggingBytesMax bounds it: where those who wait have a
	// budget, give that, or bodies are refused for which there is memory.
	LineBytesMax mail.ByteSize
	// ReconnectMax is how long at most to wait before another attempt to connect to
	// a node that was not reached; a second.
	ReconnectMax time.Duration
	Log          *slog.Logger
}

// Peers are the other nodes, as this one calls them. A node's name is enough
// for all calls; connections are made when first needed, and made again.
type Peers struct {
	config  Config
	buffers *buffers
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	loops   sync.WaitGroup

	mu     sync.Mutex
	byName map[string]*remote
	closed bool
}

// A remote is one other node. It has two connections, so that a proposal does
// not wait in a socket behind megabytes of bodies.
type remote struct {
	name   string
	calls  *grpc.ClientConn
	bodies *grpc.ClientConn
	pusher *pusher
}

// NewPeers returns Peers that know nobody yet.
func NewPeers(c Config) *Peers {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.LineBytesMax == 0 {
		c.LineBytesMax = lineBytesMax
	}
	if c.ReconnectMax == 0 {
		c.ReconnectMax = reconnectMax
	}
	p := &Peers{config: c, buffers: newBuffers(), byName: make(map[string]*remote)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends every call and connection, and waits for the goroutines of the
// push streams. Pushes in line end with ErrClosed.
func (p *Peers) Close() error {
	p.mu.Lock()
	p.closed = true
	var all []*remote
	for _, r := range p.byName {
		all = append(all, r)
	}
	clear(p.byName)
	p.mu.Unlock()
	p.cancel()
	p.loops.Wait()
	var errs []error
	for _, r := range all {
		errs = append(errs, r.calls.Close(), r.bodies.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close connections to peers: %w", err)
	}
	return nil
}

// remote returns the named node, making its connections lazily: nothing is
// dialled here.
func (p *Peers) remote(name string) (*remote, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if r := p.byName[name]; r != nil {
		return r, nil
	}
	if len(p.byName) >= peersMax {
		return nil, fmt.Errorf("%w: more than %d peers", ErrUnreachable, peersMax)
	}
	calls, err := p.client(name)
	if err != nil {
		return nil, err
	}
	bodies, err := p.client(name)
	if err != nil {
		return nil, errors.Join(err, calls.Close())
	}
	r := &remote{name: name, calls: calls, bodies: bodies, pusher: newPusher(name, bodies, p.config.LineBytesMax, p.config.Log)}
	p.byName[name] = r
	p.loops.Go(func() { r.pusher.run(p.ctx) })
	return r, nil
}

func (p *Peers) client(name string) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		address, ok := p.config.Address(name)
		if !ok {
			return nil, fmt.Errorf("%w: no address of %s is known", ErrUnreachable, name)
		}
		return p.config.Dial(ctx, name, address)
	}
	c, err := grpc.NewClient("passthrough:///"+name,
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(connectionCredentials{want: name}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // Whether a proposal may be sent twice is not for a library to say.
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: p.config.ReconnectMax},
			MinConnectTimeout: connectMax,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveIdle, Timeout: keepaliveAnswer, PermitWithoutStream: true}),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connectionWindowBytes),
		grpc.WithMaxHeaderListSize(headerBytesMax),
		grpc.WithWriteBufferSize(writeBufferBytes),
		grpc.WithReadBufferSize(readBufferBytes),
		experimental.WithBufferPool(p.buffers),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(messageBytesMax), grpc.MaxCallSendMsgSize(messageBytesMax)),
	)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", name, err)
	}
	return c, nil
}

// ready returns a client whose connection is up, or an error after which
// certainly nothing has been sent. It waits for readyMax at most, and gives up
// at once where the last attempt to connect failed.
func (p *Peers) ready(ctx context.Context, name string) (pb.PeerClient, error) {
	r, err := p.remote(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	// Close ends a waiting call as well, if not as fast: the connection is
	// closed after the push loops.
	defer context.AfterFunc(p.ctx, cancel)()
	if err := awaitReady(ctx, r.calls, true); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, name, err)
	}
	return pb.NewPeerClient(r.calls), nil
}

var errConnect = errors.New("cannot connect")

// awaitReady waits until c is connected, which means that the other side has
// spoken HTTP/2: it has accepted our certificate.
func awaitReady(ctx context.Context, c *grpc.ClientConn, failFast bool) error {
	for {
		switch s := c.GetState(); {
		case s == connectivity.Ready:
			return nil
		case s == connectivity.Shutdown:
			return ErrClosed
		case s == connectivity.TransientFailure && failFast:
			return errConnect
		default:
			if s == connectivity.Idle {
				c.Connect()
			}
			if !c.WaitForStateChange(ctx, s) {
				return ctx.Err()
			}
		}
	}
}

// Ready tells whether calls to the named node would find a connection.
func (p *Peers) Ready(name string) bool {
	r, err := p.remote(name)
	return err == nil && r.calls.GetState() == connectivity.Ready
}

// Of a push one may hear when the peer has taken the body or when it has stored it.
type Told bool

const (
	// Stored: the peer has the body on stable storage.
	Stored Told = false
	// Taken: the peer has the body whole, and only an error of its disk or the end
	// of its process can keep it from stable storage.
	Taken Told = true
)

// Push puts a body in line for the named node and returns at once. Done is
// called once, with nil when that node has done with the body what was asked for;
// it must not block. A connection that breaks is made again and the body sent again, so
// a Push to a node that is gone goes on until it is abandoned or detached.
// ErrQueueFull: too much lies in line for that node already.
func (p *Peers) Push(ref mail.BodyRef, body *mail.Body, to string, when Told, done func(error)) *Push {
	told := func(err error) {
		if err != nil {
			err = fmt.Errorf("push body %s to %s: %w", ref.ID, to, err)
		}
		done(err)
	}
	r, err := p.remote(to)
	if err != nil {
		told(err)
		return nil
	}
	return r.pusher.push(ref, body, when, told)
}

// Fetch gets a body from the named node, and checks its size and digest. It
// goes on where it broke off while ctx allows. ErrNotHeld, ErrDamaged and
// ErrMismatch say that another node should be asked.
func (p *Peers) Fetch(ctx context.Context, from string, ref mail.BodyRef, u Urgency) (*mail.Body, error) {
	body := mail.NewBodyFor(ref.Size)
	var err error
	for range 1 + fetchResumesMax {
		before := body.Size()
		if err = p.fetch(ctx, from, ref, u, body); err == nil {
			return body, nil
		}
		resume := status.Code(err) == codes.Unavailable && body.Size() > before && ctx.Err() == nil
		if !resume {
			break
		}
	}
	return nil, fmt.Errorf("fetch body %s from %s: %w", ref.ID, from, err)
}

// fetch appends to body what it lacks.
func (p *Peers) fetch(ctx context.Context, from string, ref mail.BodyRef, u Urgency, body *mail.Body) error {
	if ref.Size > BodyBytesMax {
		return ErrTooLarge
	}
	client, err := p.ready(ctx, from)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // Ends the call wherever we return.
	defer cancel()
	stream, err := client.Fetch(ctx, &pb.FetchRequest{Ref: ref.Encode(), Offset: uint64(body.Size()), Background: u == Background})
	if err != nil {
		return err
	}
	for {
		frame, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && body.Ref(ref.ID) == ref:
			return nil
		case errors.Is(err, io.EOF):
			return ErrMismatch
		case status.Code(err) == codes.NotFound:
			return ErrNotHeld
		case status.Code(err) == codes.DataLoss:
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		case err != nil:
			return err
		case body.Size()+mail.ByteSize(len(frame.GetData())) > ref.Size:
			return ErrMismatch
		}
		_, _ = body.Write(frame.GetData()) // Never fails.
	}
}

// Propose has the named node, the leader, append commands, and returns what came
// of each. Of those that name no body, none is passed over: what follows one has
// no effect without it. ErrNotAppended (with ErrTooLarge where that is why) is
// certain: nothing was sent, or the leader itself said so. Everything else that
// can go wrong is ErrOutcomeUnknown. The caller keeps to ProposalsMax and
// ProposalsBytesMax.
func (p *Peers) Propose(ctx context.Context, name string, proposals []Proposal) []Outcome {
	outcomes := make([]Outcome, len(proposals))
	request := &pb.ProposeRequest{Proposals: make([]*pb.Proposal, 0, len(proposals))}
	at := make([]int, 0, len(proposals))
	for i, proposal := range proposals {
		if len(proposal.Command) > ProposeBytesMax {
			outcomes[i].Err = &NotAppendedError{Reason: fmt.Sprintf("command of %d bytes", len(proposal.Command)), TooLarge: true}
			continue
		}
		sent := &pb.Proposal{Command: proposal.Command}
		if proposal.Body != nil {
			sent.BodyRef = proposal.Body.Encode()
		}
		request.Proposals, at = append(request.Proposals, sent), append(at, i)
	}
	replies, err := p.propose(ctx, name, request)
	for k, i := range at {
		if err != nil {
			outcomes[i].Err = fmt.Errorf("propose at %s: %w", name, err)
			continue
		}
		outcomes[i] = outcomeFromProto(replies[k])
	}
	return outcomes
}

// propose returns as many outcomes as there are proposals, or an error that
// holds for all of them.
func (p *Peers) propose(ctx context.Context, name string, request *pb.ProposeRequest) ([]*pb.ProposeOutcome, error) {
	if len(request.GetProposals()) == 0 {
		return nil, nil
	}
	client, err := p.ready(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAppended, err)
	}
	// From here on the request may have left, whatever gRPC says: its
	// "unavailable" is the same before and after.
	reply, err := client.Propose(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	if got, want := len(reply.GetOutcomes()), len(request.GetProposals()); got != want {
		return nil, fmt.Errorf("%w: %d outcomes of %d proposals", ErrOutcomeUnknown, got, want)
	}
	return reply.GetOutcomes(), nil
}

func outcomeFromProto(o *pb.ProposeOutcome) Outcome {
	switch outcome := o.GetOutcome().(type) {
	case *pb.ProposeOutcome_Result:
		return Outcome{Result: outcome.Result}
	case *pb.ProposeOutcome_NotAppended:
		n := outcome.NotAppended
		return Outcome{Err: &NotAppendedError{Reason: clip(n.GetReason()), Leader: clip(n.GetLeader()), TooLarge: n.GetTooLarge()}}
	default: // Unknown, or something newer than this node.
		return Outcome{Err: fmt.Errorf("%w: %s", ErrOutcomeUnknown, clip(o.GetUnknown().GetReason()))}
	}
}

// count32 brings a number into the range from 0 to most.
func count32(n, most int) uint32 { return uint32(min(max(n, 0), most)) }

// Pull asks the named node, the leader, for a lease.
func (p *Peers) Pull(ctx context.Context, name string, r PullRequest) (PullReply, error) {
	client, err := p.ready(ctx, name)
	if err != nil {
		return PullReply{}, fmt.Errorf("pull from %s: %w", name, err)
	}
	reply, err := client.Pull(ctx, &pb.PullRequest{
		Holder: r.Holder, Domain: r.Domain, Max: count32(r.Max, pullMax), Connections: count32(r.Connections, connectionsMax),
		Seen: &pb.Feedback{
			Token: r.Seen.Token, Answered: count32(r.Seen.Answered, pullMax), Deferred: count32(r.Seen.Deferred, pullMax),
			Lost: r.Seen.Lost, MeanMicros: uint64(max(r.Seen.Mean, 0).Microseconds()),
		},
	})
	if err != nil {
		return PullReply{}, fmt.Errorf("pull from %s: %w", name, err)
	}
	got := PullReply{Token: reply.GetToken(), Connections: -1}
	if reply.Connections != nil {
		got.Connections = int(min(reply.GetConnections(), connectionsMax))
	}
	for _, b := range reply.GetMessages() {
		id, err := mail.QueueIDFromBytes(b)
		if err != nil {
			return PullReply{}, fmt.Errorf("pull from %s: %w", name, err)
		}
		got.Messages = append(got.Messages, id)
	}
	return got, nil
}

// Health asks the named node how it is.
func (p *Peers) Health(ctx context.Context, name string, q Inquiry) (Health, error) {
	client, err := p.ready(ctx, name)
	if err != nil {
		return Health{}, fmt.Errorf("health of %s: %w", name, err)
	}
	h, err := client.Health(ctx, &pb.HealthRequest{ServerId: q.ServerID, Brief: q.Brief})
	if err != nil {
		return Health{}, fmt.Errorf("health of %s: %w", name, err)
	}
	return Health{
		ServerID: h.GetServerId(), Boot: h.GetBoot(), Applied: h.GetApplied(), Leader: h.GetLeader(), Term: h.GetTerm(),
		Bodies: h.GetBodies(), BodyBytes: byteSize(h.GetBodyBytes()), DiskFree: byteSize(h.GetDiskFreeBytes()),
		CommandVersion: h.GetCommandVersion(), DiskLow: h.GetDiskLow(), DiskFull: h.GetDiskFull(),
		Seen: Seen{
			Start: h.GetSeen().GetStart(), Term: h.GetSeen().GetTerm(), VoteTerm: h.GetSeen().GetVoteTerm(), Index: h.GetSeen().GetIndex(),
		},
		SeenOK:    h.GetSeen() != nil,
		Hydration: hydrationFromProto(h.GetHydration()), Scrub: scrubFromProto(h.GetScrub()),
	}, nil
}

// Scrub asks the named node to begin a scrub, or to end it.
func (p *Peers) Scrub(ctx context.Context, name string, a ScrubAction) (Scrub, error) {
	client, err := p.ready(ctx, name)
	if err != nil {
		return Scrub{}, fmt.Errorf("scrub %s: %w", name, err)
	}
	r, err := client.Scrub(ctx, &pb.ScrubRequest{Action: scrubActions[a]})
	if err != nil {
		return Scrub{}, fmt.Errorf("scrub %s: %w", name, err)
	}
	return scrubFromProto(r), nil
}

// Digest asks the named node for the digest of its copy of the queue as the first entry
// from after on leaves it. The error wraps ErrPassed where it has applied that before.
func (p *Peers) Digest(ctx context.Context, name string, after uint64) (Digest, error) {
	client, err := p.ready(ctx, name)
	if err != nil {
		return Digest{}, fmt.Errorf("digest of %s: %w", name, err)
	}
	r, err := client.Digest(ctx, &pb.DigestRequest{After: after})
	switch {
	case status.Code(err) == codes.OutOfRange:
		return Digest{}, fmt.Errorf("digest of %s: %w", name, ErrPassed)
	case err != nil:
		return Digest{}, fmt.Errorf("digest of %s: %w", name, err)
	}
	d := Digest{Index: r.GetIndex(), Messages: r.GetMessages()}
	if copy(d.Sum[:], r.GetSum()) != len(d.Sum) {
		return Digest{}, fmt.Errorf("digest of %s: %d octets", name, len(r.GetSum()))
	}
	return d, nil
}

// octets is n for the wire, which has nothing negative.
func octets(n mail.ByteSize) uint64 { return uint64(max(n, 0)) }

// byteSize is n as a ByteSize, or the largest one.
func byteSize(n uint64) mail.ByteSize { return mail.ByteSize(min(n, 1<<63-1)) }
