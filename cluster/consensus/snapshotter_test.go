package consensus

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestSnapshotDue(t *testing.T) {
	const threshold = DefaultSnapshotThreshold
	for _, test := range []struct {
		name    string
		backlog backlog
		want    bool
	}{
		{"nothing", backlog{}, false},
		{"few entries, however large", backlog{threshold - 1, 1 << 40, 1}, false},
		{"an empty queue", backlog{threshold, 0, 0}, true},
		{"a short queue", backlog{threshold, 0, snapshotSmallBytes}, true},
		{"a longer queue", backlog{threshold, 0, snapshotSmallBytes + 1}, false},
		{"octets enough", backlog{threshold, 20 << 20, 1 << 20}, true},
		{"an octet too few", backlog{threshold, 20<<20 - 1, 1 << 20}, false},
		{"entries enough", backlog{snapshotEntriesMax, 0, 1 << 30}, true},
		{"an entry too few", backlog{snapshotEntriesMax - 1, 0, 1 << 30}, false},
	} {
		if got := test.backlog.due(threshold); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// TestSnapshotsAreFewOctets fills queues, and drains them again, with mail of
// several sizes: while mail comes snapshots stay a twentieth of what is written,
// and a start never has more entries to apply than the bound.
func TestSnapshotsAreFewOctets(t *testing.T) {
	const (
		messages = 1_000_000
		each     = 93  // octets a message takes in a snapshot
		entry    = 550 // octets of an Accept
		look     = 2000
	)
	for _, body := range []int64{0, 4 << 10, 64 << 10} {
		var appended, snapshots, longest int64
		var share float64
		var index, last uint64
		s := &snapshotter{octets: func() int64 { return appended }}
		queued := 0
		for index = 1; index <= 3*messages; index++ {
			switch {
			case index <= messages:
				queued++
				appended += entry + body
			case index <= 2*messages: // comes and goes
				appended += entry + body
			default:
				queued--
				appended += entryOverheadBytes
			}
			longest = max(longest, int64(index-last))
			if index%look == 0 && s.backlog(index-last, queued).due(DefaultSnapshotThreshold) {
				s.done = &writtenReport{bytes: 200 + each*int64(queued), messages: queued, octets: appended}
				s.take()
				snapshots += s.counts().Bytes
				last = index
			}
			if index == 2*messages {
				share = float64(snapshots) / float64(appended)
			}
		}
		t.Logf("bodies of %d octets: %d snapshots, %.3f of what is written, %.3f with the end of %d MB; at most %d entries behind one",
			body, s.counts().Count, share, float64(snapshots)/float64(appended), appended>>20, longest)
		if longest > snapshotEntriesMax+look || body > 0 && share > 1.0/snapshotShare || s.counts().Count < 5 {
			t.Errorf("bodies of %d octets: %d snapshots, %.3f of what is written; %d entries behind one", body, s.counts().Count, share, longest)
		}
	}
}

// TestSizeOfTheNextSnapshot: what a message took in the last one is taken for what it
// takes, but for a queue so short that the rest of the snapshot counts.
func TestSizeOfTheNextSnapshot(t *testing.T) {
	for _, test := range []struct {
		bytes    int64
		messages int
		each     int64
	}{
		{93_000, 1000, 93},
		{256_000, 1000, 256},
		{257_000, 1000, snapshotMessageBytes},
		{200, 1, 200},
		{200, 0, snapshotMessageBytes},
	} {
		s := &snapshotter{octets: func() int64 { return 0 }, done: &writtenReport{bytes: test.bytes, messages: test.messages}}
		if got := s.backlog(0, 100).size; got != 100*snapshotMessageBytes {
			t.Errorf("with no snapshot yet: %d octets", got)
		}
		s.take()
		if got := s.backlog(0, 100).size; got != 100*test.each {
			t.Errorf("behind one of %d octets and %d messages: %d octets, want %d", test.bytes, test.messages, got, 100*test.each)
		}
	}
}

// A slowFSM takes its time.
type slowFSM struct{ capture, write, apply time.Duration }

func (f slowFSM) Apply(uint64, []byte, *mail.BodyRef) any { time.Sleep(f.apply); return nil }
func (f slowFSM) Snapshot() (io.WriterTo, error)          { time.Sleep(f.capture); return slowWriter(f), nil }
func (f slowFSM) Restore(io.Reader) error                 { return nil }
func (f slowFSM) Messages() int                           { return 10 }

type slowWriter slowFSM

func (w slowWriter) WriteTo(to io.Writer) (int64, error) {
	time.Sleep(w.write)
	n, err := to.Write([]byte("the whole state"))
	return int64(n), err
}

// fakeSink is a file on a disk that may be full.
type fakeSink struct {
	bytes.Buffer
	err error
}

func (s *fakeSink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Buffer.Write(p)
}
func (s *fakeSink) Close() error  { return nil }
func (s *fakeSink) ID() string    { return "1-2-3" }
func (s *fakeSink) Cancel() error { return nil }

// TestSnapshotsAreMeasured: how long the capture took, and the longest call of
// the FSM until the snapshot was written; what comes before and behind is no
// business of its.
func TestSnapshotsAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var appended int64
		f := &slowFSM{capture: 3 * time.Millisecond, write: 50 * time.Millisecond}
		a := &fsmAdapter{fsm: f, latch: newLatch(), log: &logStore{}, snapshots: &snapshotter{octets: func() int64 { return appended }}}
		apply := func(took time.Duration) {
			f.apply = took
			a.Apply(&raft.Log{Index: 1, Type: raft.LogCommand})
		}
		apply(time.Second)
		appended = 1000
		captured, err := a.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		appended = 1600
		apply(7 * time.Millisecond)
		apply(5 * time.Millisecond)
		if err := captured.Persist(new(fakeSink)); err != nil {
			t.Fatal(err)
		}
		captured.Release()
		if a.snapshots.watching.Load() {
			t.Error("calls are measured with no snapshot under way")
		}
		apply(time.Second)
		r := a.snapshots.take()
		want := writtenReport{bytes: 15, messages: 10, octets: 1000, took: 65 * time.Millisecond, capture: 3 * time.Millisecond, longest: 7 * time.Millisecond}
		if r == nil || *r != want {
			t.Errorf("got %+v\nwant %+v", r, want)
		}
		if got := a.snapshots.counts(); got != (SnapshotStats{Count: 1, Bytes: 15, LongestApply: 7 * time.Millisecond}) {
			t.Errorf("%+v", got)
		}
		if got := a.snapshots.backlog(1, 100); got.octets != 600 || got.size != 100 {
			t.Errorf("what was appended after the capture, and octets of 1 a message: %+v", got)
		}
		if r := a.snapshots.take(); r != nil {
			t.Errorf("told twice: %+v", r)
		}
		// A capture that is long holds the queue up like anything else.
		f.capture = 9 * time.Millisecond
		captured, _ = a.Snapshot()
		captured.Release()
		if r := a.snapshots.take(); r == nil || r.longest != f.capture {
			t.Errorf("%+v", r)
		}
		full := errors.New("full")
		captured, _ = a.Snapshot()
		if err := captured.Persist(&fakeSink{err: full}); !errors.Is(err, full) {
			t.Error(err)
		}
	})
}

// A lockedBuffer is a log. Raft's transport writes to it after all has ended.
type lockedBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// TestSnapshotsByThemselves: each member takes snapshots when they are due, says
// so, and begins behind the last one when it starts again.
func TestSnapshotsByThemselves(t *testing.T) {
	inCluster(t, 3, clusterOptions{trailing: 5, threshold: 40}, func(t *testing.T, c *testCluster) {
		var said lockedBuffer
		c.members["a"].logger = slog.New(slog.NewTextHandler(&said, nil))
		c.up()
		c.bootstrap()
		for range 30 {
			c.commit(c.leader())
		}
		time.Sleep(time.Minute)
		for _, m := range c.members {
			if got := m.node().Stats().Snapshots; got.Count != 0 {
				t.Errorf("%s, too early: %+v", m.name, got)
			}
		}
		for range 20 {
			c.commit(c.leader())
		}
		c.must("all level", c.level)
		time.Sleep(time.Minute)
		for _, m := range c.members {
			if got := m.node().Stats().Snapshots; got.Count != 1 || got.Bytes == 0 {
				t.Errorf("%s: %+v", m.name, got)
			}
		}
		for range 10 {
			c.commit(c.leader())
		}
		c.must("all level", c.level)
		m := c.members["a"]
		behind := m.node().log.octets.Load() - m.node().snapshots.from
		if behind == 0 {
			t.Error("nothing was appended behind the snapshot")
		}
		m.kill()
		if n := strings.Count(said.String(), `msg="snapshot written" index=`); n != 1 || !strings.Contains(said.String(), " longest_apply=") {
			t.Errorf("%d times: %s", n, said.String())
		}
		if err := m.start(); err != nil {
			t.Fatal(err)
		}
		if got := m.node().log.octets.Load() - m.node().snapshots.from; got != behind {
			t.Errorf("%d octets behind the snapshot, and %d after a restart", behind, got)
		}
		for range 40 {
			c.commit(c.leader())
		}
		c.must("all level", c.level)
		time.Sleep(time.Minute)
		if got := m.node().Stats().Snapshots; got.Count != 1 {
			t.Errorf("after the restart: %+v", got)
		}
		c.oracle.clean()
	})
}

// TestRestoreIsNoBacklog: what was appended before a snapshot of another node
// replaced the state is in no snapshot of ours to come. A restore that fails, and one
// before Raft runs, change nothing.
func TestRestoreIsNoBacklog(t *testing.T) {
	appended := int64(1000)
	f := new(restoringFSM)
	a := &fsmAdapter{fsm: f, latch: newLatch(), snapshots: &snapshotter{octets: func() int64 { return appended }}}
	restore := func() int64 {
		_ = a.Restore(io.NopCloser(strings.NewReader("")))
		return a.snapshots.backlog(0, 0).octets
	}
	if got := restore(); got != 1000 {
		t.Errorf("at the start: %d octets", got)
	}
	a.latch.running.Store(true)
	f.err = errors.New("not understood")
	if got := restore(); got != 1000 {
		t.Errorf("after one that failed: %d octets", got)
	}
	f.err = nil
	if got := restore(); got != 0 {
		t.Errorf("after one that did not: %d octets", got)
	}
	appended = 1600
	if got := a.snapshots.backlog(0, 0).octets; got != 600 {
		t.Errorf("and 600 more: %d octets", got)
	}
}

type restoringFSM struct {
	slowFSM
	err error
}

func (f *restoringFSM) Restore(io.Reader) error { return f.err }

// slowSnapshots is a store on which a snapshot takes a minute, and may fail.
type slowSnapshots struct {
	raft.SnapshotStore
	mu                          sync.Mutex
	full                        bool
	begun, atATime, atATimeMost int
}

func (s *slowSnapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(v, index, term, c, ci, t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	s.atATime++
	s.atATimeMost = max(s.atATimeMost, s.atATime)
	return &slowSink{sink, s}, err
}

type slowSink struct {
	raft.SnapshotSink
	of *slowSnapshots
}

func (s *slowSink) Close() error {
	time.Sleep(time.Minute)
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.atATime--
	if s.of.full {
		return errors.Join(errors.New("full"), s.Cancel())
	}
	return s.SnapshotSink.Close()
}

// TestSnapshotsComeOneByOne: while one is written, however long that takes, no
// other one is taken nor waits to be. One that fails is none, and is tried again.
func TestSnapshotsComeOneByOne(t *testing.T) {
	inCluster(t, 1, clusterOptions{trailing: 5, threshold: 40}, func(t *testing.T, c *testCluster) {
		var said lockedBuffer
		var slow *slowSnapshots
		m := c.members["a"]
		m.logger = slog.New(slog.NewTextHandler(&said, nil))
		m.snapshots = func(s raft.SnapshotStore) raft.SnapshotStore {
			slow = &slowSnapshots{SnapshotStore: s, full: true}
			return slow
		}
		c.up()
		c.bootstrap()
		for range 50 {
			c.commit(c.leader())
		}
		time.Sleep(100 * time.Second) // the first one has failed, the second is being written
		for range 10 {                // not enough for another one
			c.commit(c.leader())
		}
		slow.mu.Lock()
		slow.full = false
		if slow.begun != 2 || slow.atATime != 1 {
			t.Errorf("%d begun, %d at a time", slow.begun, slow.atATime)
		}
		slow.mu.Unlock()
		if got := m.node().Stats().Snapshots; got.Count != 0 || strings.Contains(said.String(), "snapshot written") {
			t.Errorf("one that failed counts: %+v", got)
		}
		time.Sleep(10 * time.Minute)
		slow.mu.Lock()
		defer slow.mu.Unlock()
		if got := m.node().Stats().Snapshots; got.Count != 1 || slow.begun != 2 || slow.atATimeMost != 1 {
			t.Errorf("%d begun, %d at a time, written: %+v", slow.begun, slow.atATimeMost, got)
		}
	})
}

// TestFloorFollows: the floor is raised although nothing is deleted, so that a start
// does not read all the bodies that a long log names.
func TestFloorFollows(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		leader := c.leader()
		c.commit(leader)
		time.Sleep(time.Minute)
		for _, name := range c.names {
			if floor := c.members[name].node().Floor(); floor != 0 {
				t.Errorf("%s: floor %d after a few entries", name, floor)
			}
		}
		for range 3 {
			proposals := make([]Proposal, floorStep/2)
			for i := range proposals {
				proposals[i].Data = []byte{commandNothing}
			}
			for _, a := range leader.node().ProposeAll(t.Context(), proposals) {
				if a.Err != nil {
					t.Fatal(a.Err)
				}
			}
		}
		c.must("all level", c.level)
		for _, name := range c.names {
			n := c.members[name].node()
			c.must("the floor of "+name, func() bool { return n.Floor() >= floorStep && n.Floor() <= n.CommitIndex() })
		}
		c.oracle.clean()
	})
}
