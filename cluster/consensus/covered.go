package consensus

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// Where a leader asks for what this node has applied.
//
// What is applied is committed, so whoever leads has the same entries up to
// there, and they are here for good: in the log, or in a snapshot where the log
// begins behind them. Raft (section 7 of the extended paper) keeps its log when
// it is sent a snapshot of such entries, and passes over entries of that kind.
// The library does neither. It looks for them in the log alone: it answers no to
// entries that follow a snapshot whose last entry is not in the log any more, so
// that the leader walks back to the beginning of its own log and sends a snapshot;
// and it installs that whatever this node has, drops entries that were
// acknowledged behind it, and goes back in what it applied.

// withoutCovered returns the request, where the log has its predecessor; else
// without the entries that were applied here, as one that has no predecessor:
// Raft then has nothing to look for. The request is copied, since the answer to
// it says what was asked.
func (g *gate) withoutCovered(req *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	begin := max(req.PrevLogEntry, 1)
	applied := g.applied()
	if begin > applied {
		return req
	}
	if first, err := g.log.FirstIndex(); err != nil || first != 0 && first <= begin {
		return req
	}
	last := req.PrevLogEntry + uint64(len(req.Entries))
	rest := *req
	rest.PrevLogEntry, rest.PrevLogTerm = 0, 0
	rest.Entries = req.Entries[min(applied-req.PrevLogEntry, uint64(len(req.Entries))):]
	// Raft commits up to the commit index or to the end of its log, compared with
	// the leader's or not (raft.go:1590).
	rest.LeaderCommitIndex = min(req.LeaderCommitIndex, max(last, applied))
	return &rest
}

// covers reports whether this node has what a snapshot holds that a leader wants
// to install: it has applied that much, or its log has the last entry of it.
func (g *gate) covers(req *raft.InstallSnapshotRequest) bool {
	if req.LastLogIndex <= g.applied() {
		return true
	}
	var l raft.Log
	return g.log.GetLog(req.LastLogIndex, &l) == nil && l.Term == req.LastLogTerm
}

// answerCovered keeps the log and answers success. All that the leader concludes
// is that we have the entries up to the snapshot, which are committed.
func (g *gate) answerCovered(rpc raft.RPC, req *raft.InstallSnapshotRequest) {
	if _, err := io.Copy(io.Discard, rpc.Reader); err != nil {
		rpc.Respond(nil, fmt.Errorf("read the snapshot: %w", err))
		return
	}
	if err := g.log.await(req.LastLogIndex); err != nil {
		rpc.Respond(nil, err)
		return
	}
	rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: req.RPCHeader, Term: req.Term, Success: true}, nil)
}

// replaces reports whether a snapshot that is not covered ends before our log
// does: our log conflicts with it.
func (g *gate) replaces(req *raft.InstallSnapshotRequest) bool {
	last, err := g.log.LastIndex()
	return err == nil && last >= req.LastLogIndex
}

// forwardReplacing lets Raft install such a snapshot. It drops the log for it,
// but goes on believing in the last entry that it had, and refuses what
// follows the snapshot for as long as it runs (hashicorp/raft#697). So the
// node ends, and reads after its restart what is there.
func (g *gate) forwardReplacing(rpc raft.RPC) {
	a, ok := g.relay(rpc)
	if !ok || a.Error != nil {
		return
	}
	if r, installed := a.Response.(*raft.InstallSnapshotResponse); installed && r.Success {
		_ = g.floor.latch.fail(errLogReplaced)
	}
}
