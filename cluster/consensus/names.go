package consensus

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A namedBody is a body and the index of an entry that names it.
type namedBody struct {
	index uint64
	ref   mail.BodyRef
}

// names is the index of the bodies that the entries of the log name.
//
// Invariant: entries is in ascending order of index, each index at most once.
// Invariant: what an entry in the store names is in entries; it is added
// before the entry is stored, and dropped after the entry is deleted.
type names struct {
	mu      sync.Mutex
	entries []namedBody
}

// at returns where index is, or would be.
func (n *names) at(index uint64) int {
	i, _ := slices.BinarySearchFunc(n.entries, index, func(b namedBody, index uint64) int {
		switch {
		case b.index < index:
			return -1
		case b.index > index:
			return 1
		}
		return 0
	})
	return i
}

// add records what the entries name. When one cannot be read, none is
// recorded. It returns how many octets the entries take, their bodies included.
func (n *names) add(logs []*raft.Log) (octets int64, err error) {
	named := make([]namedBody, 0, len(logs))
	for _, l := range logs {
		ref, err := bodyOf(l)
		if err != nil {
			return 0, err
		}
		octets += int64(len(l.Data) + len(l.Extensions) + entryOverheadBytes)
		if ref != nil {
			named = append(named, namedBody{l.Index, *ref})
			octets += int64(ref.Size)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range named {
		switch i := n.at(b.index); {
		case i == len(n.entries):
			n.entries = append(n.entries, b)
		case n.entries[i].index == b.index:
			n.entries[i] = b
		default:
			n.entries = slices.Insert(n.entries, i, b)
		}
	}
	return octets, nil
}

// drop forgets the entries from lowest to highest, both included.
func (n *names) drop(lowest, highest uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	from, to := n.at(lowest), len(n.entries)
	if highest != ^uint64(0) {
		to = n.at(highest + 1)
	}
	if from < to {
		n.entries = slices.Delete(n.entries, from, to)
	}
}

// above returns what entries above index name, in order of index.
func (n *names) above(index uint64) []namedBody {
	if index == ^uint64(0) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.entries[n.at(index+1):])
}

// has reports whether the entry at that index names that body.
func (n *names) has(b namedBody) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := n.at(b.index)
	return i < len(n.entries) && n.entries[i] == b
}

// scan fills the index from a store, and shows the commands that are in it. It
// returns how many octets the entries above index take, their bodies included.
func (n *names) scan(store raft.LogStore, above uint64, observe func(data []byte)) (octets int64, err error) {
	first, err := store.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("first index of the log: %w", err)
	}
	last, err := store.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("last index of the log: %w", err)
	}
	if first == 0 {
		return 0, nil
	}
	for index := first; index <= last; index++ {
		var l raft.Log
		if err := store.GetLog(index, &l); errors.Is(err, raft.ErrLogNotFound) {
			continue // a gap that a snapshot left
		} else if err != nil {
			return 0, fmt.Errorf("entry %d of the log: %w", index, err)
		}
		takes, err := n.add([]*raft.Log{&l})
		if err != nil {
			return 0, err
		}
		if index > above {
			octets += takes
		}
		if observe != nil && l.Type == raft.LogCommand {
			observe(l.Data)
		}
	}
	return octets, nil
}
