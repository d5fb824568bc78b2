package consensus

import (
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// transport is Raft's network transport with the append rule around it: the
// gate on what is received (gate.go), splitting and the floor on what is sent
// (sender.go).
//
// It embeds the library's transport, so that pre-vote survives: Raft drops it
// silently for a transport that has no RequestPreVote.
type transport struct {
	*raft.NetworkTransport
	id     ServerID
	stream *stream
	gate   *gate
	sender *sender

	controls  controls.Set
	pipelines *pipelines // nil outside of a control

	stop     chan struct{} // closed by Close
	stopOnce sync.Once
	running  sync.WaitGroup // the pump and what it started
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(c Config, g *gate, s *sender) *transport {
	// No pipelining: a follower's error would wedge it for good
	// (hashicorp/raft#612).
	inFlight := 1
	var open *pipelines
	if c.Controls.Has(controls.Pipelined) {
		inFlight, open = raft.DefaultMaxRPCsInFlight, &pipelines{}
	}
	st := newStream(c.Stream)
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:          st,
			Logger:          newLogger(c.Logger),
			MaxPool:         connectionsIdleMax,
			MaxRPCsInFlight: inFlight,
			Timeout:         c.rpcTimeout(),
			// Only how the times of entries are written; the same everywhere.
			MsgpackUseNewTimeFormat: true,
		}),
		id:        c.ID,
		stream:    st,
		gate:      g,
		sender:    s,
		controls:  c.Controls,
		pipelines: open,
		stop:      make(chan struct{}),
	}
	g.stop, s.send = t.stop, t.NetworkTransport.AppendEntries
	return t
}

// serve begins to hand requests on. What a peer sends before waits on its
// connection: the gate cannot judge it before Raft has read what is here.
func (t *transport) serve() { t.running.Go(t.pump) }

// connectionsIdleMax is how many idle connections to one peer are kept: one
// for heartbeats, one for entries, one for votes.
const connectionsIdleMax = 3

// Consumer returns the requests that passed the gate. Raft asks for it once.
func (t *transport) Consumer() <-chan raft.RPC { return t.gate.passed }

// LocalAddr is what Raft takes for our address: the server id. Nobody dials
// it. Raft records a vote by the candidate's address (raft.go:1676), and two
// members configured with one address must never share a vote.
func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.id) }

// SetHeartbeatHandler ignores the handler, so that heartbeats are requests
// like all others. Raft's handler changes the term on the transport's
// goroutine while a deposed leader still sits in its leader loop; what that
// leader appends next is written with the new leader's term, and logs diverge
// (hashicorp/raft#695).
func (t *transport) SetHeartbeatHandler(handler func(raft.RPC)) {
	if t.controls.Has(controls.HeartbeatFastPath) {
		t.NetworkTransport.SetHeartbeatHandler(handler)
	}
}

// AppendEntries sends entries, or a heartbeat.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.sender.appendEntries(id, target, args, resp)
}

// RequestPreVote asks for a vote before there is one, unless this node is unfit.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.sender.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// RequestVote asks for a vote, unless this node is unfit.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.sender.unfit(); err != nil {
		return err
	}
	if err := t.NetworkTransport.RequestVote(id, target, args, resp); err != nil {
		return err
	}
	p := Promises{Term: resp.Term}
	if resp.Granted {
		p.VoteTerm = args.Term
	}
	t.sender.witness.note(ServerID(id), p)
	return nil
}

// InstallSnapshot sends a snapshot, unless this node is unfit.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.sender.unfit(); err != nil {
		return err
	}
	if err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data); err != nil {
		return err
	}
	p := Promises{Term: resp.Term}
	if resp.Success {
		p.Index = args.LastLogIndex // a snapshot holds nothing that is not committed
	}
	t.sender.witness.note(ServerID(id), p)
	return nil
}

// AppendEntriesPipeline says that there is no pipelining.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if !t.controls.Has(controls.Pipelined) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err == nil {
		t.pipelines.add(p)
	}
	return p, err
}

// Close closes the listener and all connections, stops the gate, and may be
// called again. Raft calls it at the end of its shutdown.
func (t *transport) Close() error {
	var err error
	t.stopOnce.Do(func() {
		close(t.stop)
		err = t.NetworkTransport.Close()
		if t.controls.Has(controls.Pipelined) {
			t.pipelines.close()
		}
	})
	return err
}

// pump hands the requests on, those that are well-formed. Only those that carry
// entries, or ask for one, wait at the gate, each in its own goroutine, so that
// heartbeats, votes and snapshots never wait behind one. The reordering is
// harmless: Raft judges each request by its term and index.
func (t *transport) pump() {
	requests := t.NetworkTransport.Consumer()
	for {
		select {
		case <-t.stop:
			return
		case rpc := <-requests:
			if err := wellFormed(rpc.Command); err != nil {
				t.gate.refuseMalformed(&t.running, rpc, err)
				continue
			}
			t.hear(rpc.Command)
			switch cmd := rpc.Command.(type) {
			case *raft.AppendEntriesRequest:
				// Without entries it is a heartbeat, or asks for the entry before, which may
				// be stored at this moment.
				if len(cmd.Entries) > 0 || cmd.PrevLogEntry > 0 {
					t.gate.admit(&t.running, rpc, cmd)
					continue
				}
			case *raft.InstallSnapshotRequest:
				switch {
				case t.gate.covers(cmd):
					t.running.Go(func() { t.gate.answerCovered(rpc, cmd) })
					continue
				case t.gate.replaces(cmd):
					t.running.Go(func() { t.gate.forwardReplacing(rpc) })
					continue
				}
			}
			t.gate.forward(rpc)
		}
	}
}

// hear notes what a request shows of who sends it: its term is on its disk, and
// a leader's entries are, too. (The term of a pre-vote is not, and the vote of a
// candidate for itself may not be yet.)
func (t *transport) hear(request any) {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		t.sender.witness.note(ServerID(r.ID), Promises{Term: r.Term, Index: r.LeaderCommitIndex})
	case *raft.RequestVoteRequest:
		t.sender.witness.note(ServerID(r.ID), Promises{Term: r.Term})
	case *raft.InstallSnapshotRequest:
		t.sender.witness.note(ServerID(r.ID), Promises{Term: r.Term, Index: r.LastLogIndex})
	}
}

// pipelines are the open ones of the control that has them. Wedged ones do not
// end with Raft.
type pipelines struct {
	mu   sync.Mutex
	open []raft.AppendPipeline
}

func (p *pipelines) add(pipeline raft.AppendPipeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = append(p.open, pipeline)
}

func (p *pipelines) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pipeline := range p.open {
		_ = pipeline.Close()
	}
}
