package consensus

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// A sender does what has to be done to a leader's requests on their way out:
// it splits them by bytes, tells what the floor knows, tells of no commit
// that counts what is not settled here, and sends nothing at all while the
// log cannot be written.
type sender struct {
	floor    *floor
	settled  func(index uint64) uint64 // of logStore
	latch    *latch
	stalled  func() bool // a write of this node hangs
	controls controls.Set
	send     func(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error
	// refused is told of requests that a follower's gate refused.
	refused func(*raft.AppendEntriesRequest)
	witness *witness
	raised  atomic.Uint64 // requests whose commit index was raised
	// progress is what the followers are known to have.
	progress progress
}

func (s *sender) appendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	for _, part := range split(args) {
		if err := s.unfit(); err != nil {
			return err
		}
		*resp = raft.AppendEntriesResponse{}
		part = s.withFloor(s.withSettled(part))
		if err := s.send(id, target, part, resp); err != nil {
			if strings.HasPrefix(err.Error(), errRefused) {
				s.refused(part)
			}
			return fmt.Errorf("append entries at %s: %w", id, err)
		}
		s.witness.appended(id, part, resp)
		if !resp.Success {
			// Whatever part it was for, Raft finds the right place again by
			// the term and last index in the answer.
			return nil
		}
		s.progress.note(ServerID(id), part)
	}
	return nil
}

// unfit returns why this node must neither lead nor stand for election: its
// disk failed, or hangs. A leader of that kind would stay leader for ever by
// its heartbeats (hashicorp/raft#503).
func (s *sender) unfit() error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	if s.stalled() {
		return errStalled
	}
	return nil
}

// withSettled returns the request with a commit index that counts this node's
// copies only where they are settled. The request is copied: Raft goes on
// using the one it gave us.
func (s *sender) withSettled(args *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	settled := s.settled(args.LeaderCommitIndex)
	if settled == args.LeaderCommitIndex {
		return args
	}
	held := *args
	held.LeaderCommitIndex = settled
	return &held
}

// withFloor returns the request with the commit index that we know to be
// true: Raft starts with zero after each restart, and would let followers wait
// for bodies that nobody holds any more.
//
// The bound by the request's own last entry is needed since the follower
// commits up to the commit index or its own last entry, verified by this
// request or not (raft.go:1590). It leaves heartbeats, all zero, as they are.
//
// The request is copied: Raft goes on using the one it gave us.
func (s *sender) withFloor(args *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	known := s.floor.atStart
	if s.controls.Has(controls.LiveFloor) {
		known = s.floor.value.Load()
	}
	known = min(known, args.PrevLogEntry+uint64(len(args.Entries)))
	if known <= args.LeaderCommitIndex {
		return args
	}
	s.raised.Add(1)
	raised := *args
	raised.LeaderCommitIndex = known
	return &raised
}

// split cuts a request into requests of at most appendBytesMax each, or of one
// entry. Each part stands by itself: it names the last entry of the part
// before as its predecessor. The request itself is not changed.
func split(args *raft.AppendEntriesRequest) []*raft.AppendEntriesRequest {
	var parts []*raft.AppendEntriesRequest
	first, bytes := 0, 0
	cut := func(end int) {
		part := *args
		part.Entries = args.Entries[first:end:end]
		if first > 0 {
			before := args.Entries[first-1]
			part.PrevLogEntry, part.PrevLogTerm = before.Index, before.Term
		}
		parts = append(parts, &part)
		first, bytes = end, 0
	}
	for i, entry := range args.Entries {
		n := len(entry.Data) + len(entry.Extensions) + entryOverheadBytes
		if i > first && bytes+n > appendBytesMax {
			cut(i)
		}
		bytes += n
	}
	if parts == nil {
		return []*raft.AppendEntriesRequest{args}
	}
	cut(len(args.Entries))
	return parts
}
