package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// When a snapshot is due. A node that starts applies every entry since the last
// snapshot again, which speaks for many snapshots; each one writes the whole
// queue, which speaks for few.
const (
	// snapshotShare is how many octets go to the disk, for entries and the bodies
	// that they name, for each octet of a snapshot: snapshots are a twentieth of
	// what is written, at the most.
	snapshotShare = 20
	// snapshotEntriesMax is how many entries there are between two snapshots, at
	// the most, whatever their octets: they must be applied again in seconds.
	snapshotEntriesMax = 500_000
	// snapshotMessageBytes is what a message takes in a snapshot, until one has
	// been written and it is known.
	snapshotMessageBytes = 128
	// snapshotSmallBytes is the size of a snapshot that nobody needs to save:
	// DefaultSnapshotThreshold entries without a body are twenty times as long.
	snapshotSmallBytes = 64 << 10
)

// A backlog is what has come since the last snapshot, beside the size of the next:
// it decides whether one is due.
type backlog struct {
	entries uint64 // in the log since the last snapshot
	octets  int64  // of them and of the bodies that they name
	size    int64  // of a snapshot now, as far as can be told
}

func (b backlog) due(threshold uint64) bool {
	if b.entries < threshold {
		return false
	}
	return b.entries >= snapshotEntriesMax || b.size <= snapshotSmallBytes || b.octets >= snapshotShare*b.size
}

// SnapshotStats are counts since the start.
type SnapshotStats struct {
	Count uint64
	Bytes int64 // of the last one
	// LongestApply is the longest call of the FSM while one was captured and
	// written, the capture included: for so long nothing else could be applied.
	LongestApply time.Duration
}

// A snapshotter measures the snapshots that are written. What Raft's FSM
// goroutine calls does not wait.
type snapshotter struct {
	threshold uint64
	// octets returns how much has been appended so far, see logStore.octets.
	octets func() int64

	// watching is set from a capture until its snapshot is written or given up.
	watching atomic.Bool
	longest  atomic.Int64 // nanoseconds of the longest call of the FSM meanwhile

	mu    sync.Mutex
	from  int64          // octets when the last snapshot was captured
	each  int64          // octets a message took in it, zero if not known
	done  *writtenReport // the last one that was written and not told yet
	stats SnapshotStats
}

// A writtenReport is what is told of a snapshot.
type writtenReport struct {
	bytes         int64
	messages      int
	octets        int64 // appended before it was captured
	took, capture time.Duration
	longest       time.Duration
}

// apply notes how long a call of the FSM took that began then.
func (s *snapshotter) apply(began time.Time) {
	took := int64(time.Since(began))
	for was := s.longest.Load(); took > was && !s.longest.CompareAndSwap(was, took); was = s.longest.Load() {
	}
}

// capture makes a snapshot of the FSM.
func (s *snapshotter) capture(f FSM) (raft.FSMSnapshot, error) {
	began := time.Now()
	state, err := f.Snapshot()
	if err != nil {
		return nil, err
	}
	s.longest.Store(int64(time.Since(began)))
	s.watching.Store(true)
	return &snapshot{
		to: s, state: state, began: began,
		report: writtenReport{messages: f.Messages(), octets: s.octets(), capture: time.Since(began)},
	}, nil
}

// restored says that the state was replaced by a snapshot of another node.
func (s *snapshotter) restored() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = s.octets()
}

// take returns the report of a snapshot that is written for good, once.
func (s *snapshotter) take() *writtenReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.done
	if s.done = nil; r == nil {
		return nil
	}
	s.from, s.each = r.octets, 0
	if r.messages > 0 {
		s.each = r.bytes / int64(r.messages)
	}
	s.stats.Count++
	s.stats.Bytes = r.bytes
	s.stats.LongestApply = max(s.stats.LongestApply, r.longest)
	return r
}

// backlog returns where things stand, with so many entries since the last snapshot
// and messages in the state.
func (s *snapshotter) backlog(entries uint64, messages int) backlog {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := s.each
	// What a short queue took is mostly what is there once.
	if each == 0 || each > 2*snapshotMessageBytes {
		each = snapshotMessageBytes
	}
	return backlog{entries: entries, octets: s.octets() - s.from, size: each * int64(messages)}
}

func (s *snapshotter) counts() SnapshotStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// A snapshot is a captured state, on its way to the disk.
type snapshot struct {
	to     *snapshotter
	state  io.WriterTo
	began  time.Time
	report writtenReport
}

// Persist writes the state. Raft closes the sink after it, or cancels it.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.state.WriteTo(countedSink{sink, &s.report.bytes}); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}

// A countedSink counts what is written.
type countedSink struct {
	io.Writer
	octets *int64
}

func (s countedSink) Write(p []byte) (int, error) {
	n, err := s.Writer.Write(p)
	*s.octets += int64(n)
	return n, err
}

// Release comes when Raft is through with the snapshot, whatever became of it.
func (s *snapshot) Release() {
	s.to.watching.Store(false)
	s.report.took = time.Since(s.began)
	s.report.longest = time.Duration(s.to.longest.Load())
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	s.to.done = &s.report
}

// floorStep is after how many entries the floor is raised although nothing is
// deleted. The start-up check reads each body that is named above it.
const floorStep = 4096

// takeSnapshots takes a snapshot whenever one is due, and raises the floor, until
// ctx ends. The nodes look at different times, so that not all of them write at
// once.
func (n *Node) takeSnapshots(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.config.SnapshotInterval + rand.N(n.config.SnapshotInterval)):
		}
		if applied := n.fsm.applied.Load(); applied >= n.Floor()+floorStep {
			_ = n.floor.raise(applied) // The latch has the error.
		}
		entries := n.raft.LastIndex() - min(n.lastSnapshot(), n.raft.LastIndex())
		if !n.snapshots.backlog(entries, n.config.FSM.Messages()).due(n.snapshots.threshold) {
			continue
		}
		// Raft has logged why one failed, and the next look tries again.
		_ = n.Snapshot(ctx)
	}
}

// newestSnapshot returns up to which index the newest snapshot goes, zero where
// that cannot be told: Raft finds out more.
func newestSnapshot(s raft.SnapshotStore) uint64 {
	snapshots, err := s.List()
	if err != nil || len(snapshots) == 0 {
		return 0
	}
	return snapshots[0].Index
}

// lastSnapshot returns up to which index the last snapshot goes.
func (n *Node) lastSnapshot() uint64 {
	index, _ := strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64) // always a number
	return index
}

// Snapshot takes a snapshot now and drops the log behind it, but for the
// trailing entries. It returns nil where there is nothing new.
func (n *Node) Snapshot(ctx context.Context) error {
	p, err := start(n, ctx, func(time.Duration) raft.Future { return n.raft.Snapshot() })
	if err != nil {
		return err
	}
	if _, err = p.wait(ctx); errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err != nil {
		return err
	}
	if r := n.snapshots.take(); r != nil {
		n.config.Logger.Info("snapshot written", "index", n.lastSnapshot(), "bytes", r.bytes, "messages", r.messages,
			"took", r.took, "capture", r.capture, "longest_apply", r.longest)
	}
	return nil
}
