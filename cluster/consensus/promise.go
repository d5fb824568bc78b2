package consensus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// startKey is where the stable store counts the starts.
var startKey = []byte("HoldfastStart")

// BeginStart counts a start with these stores, durably, and returns how many
// there have been, this one included.
func (s Stores) BeginStart() (uint64, error) {
	n, err := s.Stable.GetUint64(startKey)
	if err != nil && !isKeyNotFound(err) {
		return 0, fmt.Errorf("read the count of starts: %w", err)
	}
	n++
	if err := s.Stable.SetUint64(startKey, n); err != nil {
		return 0, fmt.Errorf("%w: count the start: %w", ErrDisk, err)
	}
	return n, nil
}

// Promises are what a server has bound itself to, as its own disk or somebody
// else knows it. None of the numbers ever becomes smaller on one disk, so a
// server that knows less of itself than others do has an old copy of its disk:
// it may vote a second time, or not have what it acknowledged.
type Promises struct {
	Start    uint64 // how often it has started
	Term     uint64 // its term
	VoteTerm uint64 // the last term in which it gave a vote
	Index    uint64 // the last committed entry that it acknowledged, or more
}

// Promises returns what these stores know of themselves.
func (s Stores) Promises() (Promises, error) {
	var p Promises
	for _, number := range []struct {
		key []byte
		to  *uint64
	}{{startKey, &p.Start}, {[]byte("CurrentTerm"), &p.Term}, {[]byte("LastVoteTerm"), &p.VoteTerm}} { // raft.go:28
		n, err := s.Stable.GetUint64(number.key)
		if err != nil && !isKeyNotFound(err) {
			return p, fmt.Errorf("read %s: %w", number.key, err)
		}
		*number.to = n
	}
	last, err := s.Log.LastIndex()
	if err != nil {
		return p, fmt.Errorf("read the log: %w", err)
	}
	snapshots, err := s.Snapshots.List()
	if err != nil {
		return p, fmt.Errorf("list the snapshots: %w", err)
	}
	p.Index = last
	for _, m := range snapshots {
		p.Index = max(p.Index, m.Index)
	}
	return p, nil
}

// Servers returns the newest configuration in the stores, committed or not, nil
// where there is none.
func (s Stores) Servers() ([]Server, error) {
	first, err := s.Log.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	last, err := s.Log.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	snapshots, err := s.Snapshots.List()
	if err != nil {
		return nil, err
	}
	var newest []Server
	if len(snapshots) > 0 {
		newest = serversOf(snapshots[0].Configuration)
		first = max(first, snapshots[0].Index+1) // what is before that is older
	}
	if first == 0 {
		return newest, nil
	}
	// From the beginning on: a log is read fastest in its order.
	for index := first; index <= last; index++ {
		var l raft.Log
		if err := s.Log.GetLog(index, &l); err != nil && err != raft.ErrLogNotFound {
			return nil, damaged(fmt.Errorf("entry %d of the log: %w", index, err))
		}
		if l.Type != raft.LogConfiguration {
			continue
		}
		c, err := decodeConfiguration(l.Data)
		if err != nil {
			return nil, damaged(fmt.Errorf("entry %d of the log: %w", index, err))
		}
		newest = serversOf(c)
	}
	return newest, nil
}

// Shut closes the stores.
func (s Stores) Shut() error {
	if s.Close == nil {
		return nil
	}
	return s.Close()
}

// ErrOutdated: the data directory is an older copy of itself, so this node does
// not know what it promised since.
var ErrOutdated = errors.New("this data directory is older than what the cluster knows of this node")

// Outdated returns why a node that has promised p, and has not begun to run
// Raft, must not: the others have seen more of it. It is nil otherwise.
//
// A start is counted before anybody can hear of it, so another one with the same
// number was made from another copy.
func (p Promises) Outdated(seen Promises) error {
	for _, c := range []struct {
		what       string
		here, seen uint64
		old        bool
	}{
		{"start", p.Start, seen.Start, seen.Start > 0 && seen.Start >= p.Start},
		{"term", p.Term, seen.Term, seen.Term > p.Term},
		{"vote in term", p.VoteTerm, seen.VoteTerm, seen.VoteTerm > p.VoteTerm},
		{"acknowledged entry", p.Index, seen.Index, seen.Index > p.Index},
	} {
		if c.old {
			return Outdated(fmt.Errorf("its last %s here is %d, and %d is known", c.what, c.here, c.seen))
		}
	}
	return nil
}

// Outdated returns ErrOutdated with a cause, what it means and what to do.
func Outdated(cause error) error {
	return fmt.Errorf("%w: %w. It was restored from an image or copied: the votes and entries since are not in it, so this node "+
		"must not speak under its server id again. Move the data directory away and start the node with an empty one: it comes "+
		"back under a new incarnation, and the other nodes hold what was here", ErrOutdated, cause)
}

// witnessesMax bounds the servers that are remembered: those of a
// configuration, and some that were.
const witnessesMax = 64

// A witness remembers what this node has seen other servers promise since it
// started: in their answers and in what they asked. Its methods are safe for
// concurrent use.
type witness struct {
	mu   sync.Mutex
	seen map[ServerID]Promises
	// acknowledged is how far the last request reached to which a server said yes,
	// and the term of the leader, this node, that sent it.
	acknowledged map[ServerID]position
}

// note takes in what a server has shown of itself. Its numbers only grow.
func (w *witness) note(id ServerID, p Promises) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, known := w.seen[id]
	if !known && len(w.seen) >= witnessesMax {
		return
	}
	if w.seen == nil {
		w.seen = make(map[ServerID]Promises)
	}
	w.seen[id] = Promises{
		Term: max(was.Term, p.Term), VoteTerm: max(was.VoteTerm, p.VoteTerm), Index: max(was.Index, p.Index),
	}
}

func (w *witness) of(id ServerID) Promises {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[id]
}

// appended takes in the answer to a request with or without entries. Index is
// only what was committed when the request was sent: what was not may be cut off
// again.
func (w *witness) appended(id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	p := Promises{Term: resp.Term}
	if resp.Success {
		last := args.PrevLogEntry + uint64(len(args.Entries))
		p.Index = min(args.LeaderCommitIndex, last)
		if last > 0 { // no heartbeat
			w.noteAcknowledged(ServerID(id), position{args.Term, last})
		}
	}
	w.note(ServerID(id), p)
}

func (w *witness) noteAcknowledged(id ServerID, p position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.acknowledged[id]; !known && len(w.acknowledged) >= witnessesMax {
		return
	}
	if w.acknowledged == nil {
		w.acknowledged = make(map[ServerID]position)
	}
	w.acknowledged[id] = p
}

func (w *witness) lastAcknowledged(id ServerID) position {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acknowledged[id]
}

// Witnessed returns what this node has seen a server promise since it started.
// The number of the start is not in it.
//
// A leader also knows of what was committed since it sent it: a follower that
// had the entry keeps it for good. That holds as long as it leads in the same
// term, from before the commit index is read to after it; later, what commits at
// that index may be another entry.
func (n *Node) Witnessed(id ServerID) Promises {
	p, last := n.witness.of(id), n.witness.lastAcknowledged(id)
	leads := func() bool { return n.IsLeader() && n.Term() == last.term }
	if leads() {
		if committed := n.CommitIndex(); leads() {
			p.Index = max(p.Index, min(committed, last.index))
		}
	}
	return p
}
