package consensus

import (
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/raftlog"
)

const (
	// runsMax is how many readers can go through the log at a time, each in order:
	// one for each follower that lags, and one for what is applied.
	runsMax = 8
	// runBytes and runEntriesMax bound what is read at once for one of them. An
	// entry keeps the octets of its run in memory.
	runBytes      = EntryBytesMax
	runEntriesMax = 256
)

// A runCache reads ahead for who reads the log entry by entry, in order, as a
// start does, and a follower that catches up: one look at the disk brings many
// entries. Who reads here and there gets nothing from it. It is safe for
// concurrent use.
//
// Invariant: what is in a run was in the log at the last clear, or has been
// appended since.
type runCache struct {
	mu     sync.Mutex
	cleans uint64 // calls of clear
	runs   [runsMax]run
	turn   int // which one is used for the next reader
}

// A run is entries that follow one another, and where their reader is expected.
type run struct {
	next    uint64 // the index behind the last one that was read; 0 is unused
	entries []raft.Log
}

// get returns an entry of a run, or begins the next run where it goes on from what
// was read before.
func (c *runCache) get(log *raftlog.Log, index uint64, l *raft.Log) bool {
	c.mu.Lock()
	cleans, at := c.cleans, -1
	for i := range c.runs {
		r := &c.runs[i]
		if n := len(r.entries); n > 0 && index >= r.entries[0].Index && index-r.entries[0].Index < uint64(n) {
			*l = r.entries[index-r.entries[0].Index]
			r.next = index + 1
			c.mu.Unlock()
			return true
		}
		if r.next == index {
			at = i
		}
	}
	if at < 0 { // a new reader, perhaps
		c.turn = (c.turn + 1) % runsMax
		c.runs[c.turn] = run{next: index + 1}
		c.mu.Unlock()
		return false
	}
	c.mu.Unlock()
	entries := make([]raft.Log, 0, runEntriesMax)
	log.ReadRun(index, runEntriesMax, make([]byte, runBytes), func(index, term uint64, octets []byte) {
		var e raft.Log
		if len(entries) == cap(entries) || decodeEntry(index, term, octets, &e) != nil {
			return
		}
		if n := len(entries); n == 0 || entries[n-1].Index+1 == index {
			entries = append(entries, e)
		}
	})
	if len(entries) == 0 || entries[0].Index != index {
		return false
	}
	*l = entries[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cleans == cleans {
		c.runs[at] = run{next: index + 1, entries: entries}
	}
	return true
}

// clear forgets everything. Call it when entries have been deleted.
func (c *runCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleans++
	c.runs = [runsMax]run{}
}
