package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A segmentLog is Raft's log in segment files. What a record holds beside index
// and term, which are its label:
//
//	byte  0      version (1)
//	byte  1      type of the entry
//	bytes 2-9    when the leader appended it, Unix nanoseconds, big endian; 0 is
//	             unknown
//	bytes 10-13  length of the data, big endian
//	             the data
//	             the extensions, up to the end
type segmentLog struct {
	log   *raftlog.Log
	cache entryCache
	runs  runCache

	wrote   atomic.Int64 // Unix nanoseconds of the last write
	stop    chan struct{}
	stopped chan struct{}
}

var _ raft.MonotonicLogStore = (*segmentLog)(nil)

const (
	entryVersion   = 1
	entryHeadBytes = 14
)

// openSegmentLog opens, or makes, the log in dir.
func openSegmentLog(fs vfs.FS, dir string, o raftlog.Options) (*segmentLog, error) {
	l, err := raftlog.Open(fs, dir, o)
	if errors.Is(err, raftlog.ErrDamaged) {
		return nil, damaged(err)
	} else if err != nil {
		return nil, err
	}
	s := &segmentLog{log: l, stop: make(chan struct{}), stopped: make(chan struct{})}
	go s.prewrite()
	return s, nil
}

func (s *segmentLog) Close() error {
	close(s.stop)
	<-s.stopped
	return s.log.Close()
}

const (
	// prewriteIdle is how long nothing must have been written before a file is
	// made ready, a step at a time.
	prewriteIdle = 200 * time.Millisecond
	// prewriteRest is how long to wait when there is nothing to make ready.
	prewriteRest = 5 * time.Second
)

// prewrite makes a file ready while there is nothing else to write.
func (s *segmentLog) prewrite() {
	defer close(s.stopped)
	wait := time.NewTimer(prewriteIdle)
	defer wait.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-wait.C:
		}
		next := prewriteIdle
		if idle := time.Since(time.Unix(0, s.wrote.Load())); idle >= prewriteIdle && !s.log.Prewrite() {
			next = prewriteRest
		}
		wait.Reset(next)
	}
}

func (s *segmentLog) IsMonotonic() bool { return true }

// Attested returns the last entry that was settled when the last batch before
// this start was written.
func (s *segmentLog) Attested() uint64 { return s.log.Attested() }

func (s *segmentLog) FirstIndex() (uint64, error) {
	first, _ := s.log.Bounds()
	return first, nil
}

func (s *segmentLog) LastIndex() (uint64, error) {
	_, last := s.log.Bounds()
	return last, nil
}

// GetLog reads an entry. What it returns is not to be changed. The error is
// raft.ErrLogNotFound itself where there is none.
func (s *segmentLog) GetLog(index uint64, l *raft.Log) error {
	if s.cache.get(index, l) || s.runs.get(s.log, index, l) {
		return nil
	}
	term, octets, err := s.log.Read(index, nil)
	if errors.Is(err, raftlog.ErrNotFound) {
		return raft.ErrLogNotFound
	} else if err != nil {
		return err
	}
	return decodeEntry(index, term, octets, l)
}

func (s *segmentLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries; they are durable on return.
func (s *segmentLog) StoreLogs(logs []*raft.Log) error {
	entries := make([]raftlog.Entry, len(logs))
	heads := make([]byte, 0, entryHeadBytes*len(logs))
	pieces := make([][]byte, 0, 3*len(logs))
	for i, l := range logs {
		heads = appendEntryHead(heads, l)
		pieces = append(pieces, heads[len(heads)-entryHeadBytes:], l.Data, l.Extensions)
		entries[i] = raftlog.Entry{Index: l.Index, Term: l.Term, Pieces: pieces[3*i:]}
	}
	s.wrote.Store(time.Now().UnixNano())
	if err := s.log.Append(entries); err != nil {
		return err
	}
	s.cache.add(logs)
	return nil
}

// DeleteRange deletes entries at one end, or all.
func (s *segmentLog) DeleteRange(lowest, highest uint64) error {
	s.cache.drop(lowest, highest)
	err := s.log.Delete(lowest, highest)
	s.runs.clear() // behind it: what is read until then is in the log
	return err
}

func appendEntryHead(b []byte, l *raft.Log) []byte {
	b = append(b, entryVersion, byte(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
}

var errEntry = errors.New("not an entry of this version")

func decodeEntry(index, term uint64, b []byte, l *raft.Log) error {
	if len(b) < entryHeadBytes || b[0] != entryVersion {
		return fmt.Errorf("entry %d, %d octets: %w", index, len(b), errEntry)
	}
	data := binary.BigEndian.Uint32(b[10:])
	if uint64(data) > uint64(len(b)-entryHeadBytes) {
		return fmt.Errorf("entry %d: data of %d octets in %d: %w", index, data, len(b), errEntry)
	}
	*l = raft.Log{Index: index, Term: term, Type: raft.LogType(b[1])}
	if at := int64(binary.BigEndian.Uint64(b[2:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if rest := b[entryHeadBytes:]; len(rest) > 0 {
		l.Data = rest[:data:data]
		if len(rest) > int(data) {
			l.Extensions = rest[data:]
		}
	}
	return nil
}

// cacheBytesMax is about how much memory the newest entries take.
const cacheBytesMax = 8 << 20

// An entryCache has the newest entries: a leader reads them once for each
// follower, and everybody when they are committed.
type entryCache struct {
	mu sync.Mutex
	// Invariant: entries follow one another, each as it stands in the log.
	entries []raft.Log
	bytes   int
}

// entryCost is what an entry takes in memory.
func entryCost(l *raft.Log) int { return 128 + len(l.Data) + len(l.Extensions) }

func (c *entryCache) get(index uint64, l *raft.Log) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) == 0 || index < c.entries[0].Index || index-c.entries[0].Index >= uint64(len(c.entries)) {
		return false
	}
	*l = c.entries[index-c.entries[0].Index]
	return true
}

// add takes in entries that were appended. The structs are copied, since Raft
// goes on using its own.
func (c *entryCache) add(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.entries); n > 0 && c.entries[n-1].Index+1 != logs[0].Index {
		c.entries, c.bytes = nil, 0
	}
	for _, l := range logs {
		c.entries = append(c.entries, *l)
		c.bytes += entryCost(l)
	}
	old := 0
	for ; c.bytes > cacheBytesMax && old < len(c.entries)-1; old++ {
		c.bytes -= entryCost(&c.entries[old])
		c.entries[old] = raft.Log{}
	}
	c.entries = c.entries[old:]
}

// drop forgets entries. It is called before they are deleted, so that none is
// found that is not in the log.
func (c *entryCache) drop(lowest, highest uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) == 0 || highest < c.entries[0].Index || lowest > c.entries[len(c.entries)-1].Index {
		return
	}
	from, to := 0, len(c.entries)
	if lowest > c.entries[0].Index {
		from = int(lowest - c.entries[0].Index)
	} else if highest < c.entries[to-1].Index {
		to = int(highest - c.entries[0].Index + 1)
	}
	kept := c.entries[:from]
	if from == 0 {
		kept = c.entries[to:]
	}
	c.entries, c.bytes = kept, 0
	for i := range kept {
		c.bytes += entryCost(&kept[i])
	}
}
