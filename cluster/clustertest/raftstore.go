package clustertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ErrDisk is an injected disk error.
var ErrDisk = errors.New("input/output error")

const snapshotsKept = 2

// A RaftDisk is what Raft has on stable storage: log, term, vote, snapshots. It
// outlives the processes that open it.
type RaftDisk struct {
	mu        sync.Mutex
	rand      *rand.Rand
	writeMax  time.Duration
	logs      map[uint64]raft.Log
	first     uint64
	last      uint64
	attested  uint64 // last before the last batch
	values    map[string][]byte
	numbers   map[string]uint64
	snapshots []*storedSnapshot
	number    func(key string, value uint64) // told of each SetUint64
	serial    int
}

type storedSnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// NewRaftDisk returns an empty disk whose durable operations take up to
// writeMax.
func NewRaftDisk(seed uint64, writeMax time.Duration) *RaftDisk {
	return &RaftDisk{
		rand:     rand.New(rand.NewPCG(seed, 0x7261667464)),
		writeMax: writeMax,
		logs:     make(map[uint64]raft.Log),
		values:   make(map[string][]byte),
		numbers:  make(map[string]uint64),
	}
}

// Copy returns what an image of the disk would hold, taken now.
func (d *RaftDisk) Copy() *RaftDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &RaftDisk{
		rand: rand.New(rand.NewPCG(1, 0x7261667464)), writeMax: d.writeMax,
		logs: maps.Clone(d.logs), first: d.first, last: d.last, attested: d.attested,
		values: maps.Clone(d.values), numbers: maps.Clone(d.numbers),
		snapshots: slices.Clone(d.snapshots), serial: d.serial,
	}
}

// OnNumber sets what is told of each durable SetUint64, in that moment. It must
// not use the disk.
func (d *RaftDisk) OnNumber(told func(key string, value uint64)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.number = told
}

// Number returns what is stored under a key.
func (d *RaftDisk) Number(key string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.numbers[key]
}

// Entry returns a stored entry.
func (d *RaftDisk) Entry(index uint64) (raft.Log, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.logs[index]
	return l, ok
}

// Covers reports whether that entry is stored, or a snapshot that is behind it.
func (d *RaftDisk) Covers(index, term uint64, data []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l, ok := d.logs[index]; ok {
		return l.Term == term && bytes.Equal(l.Data, data)
	}
	return slices.ContainsFunc(d.snapshots, func(s *storedSnapshot) bool { return s.meta.Index >= index })
}

// Bounds returns the first and the last index of the log.
func (d *RaftDisk) Bounds() (first, last uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first, d.last
}

// Open returns the disk as one process sees it.
func (d *RaftDisk) Open() *RaftStore {
	return &RaftStore{disk: d, crashed: make(chan struct{}), unblocked: closedChannel(), valuesOn: closedChannel()}
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// A RaftStore is a RaftDisk as one process sees it, until that crashes. It is
// a raft.LogStore, a raft.StableStore and a raft.SnapshotStore.
type RaftStore struct {
	disk    *RaftDisk
	crashed chan struct{}
	once    sync.Once

	mu         sync.Mutex
	unblocked  chan struct{} // closed while writes of entries go through
	valuesOn   chan struct{} // closed while writes of values go through
	failures   int           // how many writes of entries fail next
	valuesFail bool
	atValue    *atValue // what the next write of a value meets; nil for nothing
	unreadable uint64   // entries from here on cannot be read; 0 for none
}

var (
	_ raft.LogStore      = (*RaftStore)(nil)
	_ raft.StableStore   = (*RaftStore)(nil)
	_ raft.SnapshotStore = (*RaftStore)(nil)
)

// Crash ends the process: what is not on the disk yet never will be.
func (s *RaftStore) Crash() { s.once.Do(func() { close(s.crashed) }) }

// Block makes writes of entries hang until Unblock or Crash.
func (s *RaftStore) Block() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unblocked = make(chan struct{})
}

// BlockValues makes writes of values hang until Unblock or Crash.
func (s *RaftStore) BlockValues() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.valuesOn = make(chan struct{})
}

// Unblock lets all of them through.
func (s *RaftStore) Unblock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, gate := range []chan struct{}{s.unblocked, s.valuesOn} {
		select {
		case <-gate:
		default:
			close(gate)
		}
	}
}

// pass waits while writes of that kind hang.
func (s *RaftStore) pass(gate *chan struct{}) {
	s.mu.Lock()
	open := *gate
	s.mu.Unlock()
	select {
	case <-open:
	case <-s.crashed:
	}
}

func (s *RaftStore) passValues() error {
	s.pass(&s.valuesOn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.valuesFail {
		return ErrDisk
	}
	return nil
}

// FailNext makes the next n writes of entries fail, without effect.
func (s *RaftStore) FailNext(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = n
}

// FailValues makes all later writes of values fail, without effect.
func (s *RaftStore) FailValues() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.valuesFail = true
}

// An atValue is the end of a process at a write of a value.
type atValue struct {
	skip  int
	crash func()
	late  bool
}

// CrashAtValue has crash called, by a goroutine of its own, in the middle of a
// write of a value, term, vote or floor, when so many have been done. The value is on the disk already
// where late says so, but the process never learns that, since its disk is dead
// from that moment on.
func (s *RaftStore) CrashAtValue(skip int, late bool, crash func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.atValue = &atValue{skip, crash, late}
}

// storeValue does one write of a value.
func (s *RaftStore) storeValue(change func(*RaftDisk)) error {
	if err := s.passValues(); err != nil {
		return err
	}
	s.mu.Lock()
	at := s.atValue
	if at != nil && at.skip > 0 {
		at.skip--
		at = nil
	} else {
		s.atValue = nil
	}
	s.mu.Unlock()
	if at == nil {
		return s.durable(change)
	}
	if at.late {
		if err := s.durable(change); err != nil {
			return err
		}
	}
	s.Crash()
	go at.crash()
	return ErrKilled
}

// FailReads makes reading any entry from index on fail.
func (s *RaftStore) FailReads(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreadable = index
}

// durable does one durable operation.
func (s *RaftStore) durable(change func(*RaftDisk)) error {
	s.disk.mu.Lock()
	before, after := s.disk.time(), s.disk.time()
	s.disk.mu.Unlock()
	if err := s.sleep(before); err != nil {
		return err
	}
	s.disk.mu.Lock()
	change(s.disk)
	s.disk.mu.Unlock()
	return s.sleep(after)
}

func (d *RaftDisk) time() time.Duration {
	if d.writeMax <= 1 {
		return d.writeMax
	}
	return time.Duration(d.rand.Int64N(int64(d.writeMax)/2 + 1))
}

func (s *RaftStore) sleep(d time.Duration) error {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-s.crashed:
		case <-timer.C:
		}
	}
	select {
	case <-s.crashed:
		return ErrKilled
	default:
		return nil
	}
}

// FirstIndex returns 0 for an empty log.
func (s *RaftStore) FirstIndex() (uint64, error) {
	first, _ := s.disk.Bounds()
	return first, nil
}

// Attested returns the last entry before the last batch.
func (s *RaftStore) Attested() uint64 {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return s.disk.attested
}

// LastIndex returns 0 for an empty log.
func (s *RaftStore) LastIndex() (uint64, error) {
	_, last := s.disk.Bounds()
	return last, nil
}

// GetLog reads an entry.
func (s *RaftStore) GetLog(index uint64, l *raft.Log) error {
	s.mu.Lock()
	unreadable := s.unreadable
	s.mu.Unlock()
	if unreadable > 0 && index >= unreadable {
		return ErrDisk
	}
	entry, ok := s.disk.Entry(index)
	if !ok {
		return raft.ErrLogNotFound
	}
	*l = entry
	return nil
}

// StoreLog stores one entry.
func (s *RaftStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs stores all entries or none.
func (s *RaftStore) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	fail := s.failures > 0
	if fail {
		s.failures--
	}
	s.mu.Unlock()
	s.pass(&s.unblocked)
	if fail {
		return ErrDisk
	}
	return s.durable(func(d *RaftDisk) {
		if len(logs) > 0 {
			d.attested = logs[0].Index - 1
		}
		for _, l := range logs {
			d.logs[l.Index] = *l
			if d.first == 0 || l.Index < d.first {
				d.first = l.Index
			}
			d.last = max(d.last, l.Index)
		}
	})
}

// DeleteRange deletes entries. An empty range, or an empty log, is no error.
func (s *RaftStore) DeleteRange(lowest, highest uint64) error {
	return s.durable(func(d *RaftDisk) {
		for index := range d.logs {
			if lowest <= index && index <= highest {
				delete(d.logs, index)
			}
		}
		d.first, d.last = 0, 0
		for index := range d.logs {
			if d.first == 0 || index < d.first {
				d.first = index
			}
			d.last = max(d.last, index)
		}
	})
}

// Set stores a value.
func (s *RaftStore) Set(key, value []byte) error {
	return s.storeValue(func(d *RaftDisk) { d.values[string(key)] = bytes.Clone(value) })
}

// Get returns a value, empty for none.
func (s *RaftStore) Get(key []byte) ([]byte, error) {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return bytes.Clone(s.disk.values[string(key)]), nil
}

// SetUint64 stores a number.
func (s *RaftStore) SetUint64(key []byte, value uint64) error {
	return s.storeValue(func(d *RaftDisk) {
		d.numbers[string(key)] = value
		if d.number != nil {
			d.number(string(key), value)
		}
	})
}

// GetUint64 returns a number, 0 for none.
func (s *RaftStore) GetUint64(key []byte) (uint64, error) { return s.disk.Number(string(key)), nil }

// Create begins a snapshot. It is on the disk once its sink is closed.
func (s *RaftStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.disk.mu.Lock()
	s.disk.serial++
	id := fmt.Sprintf("%d-%d-%d", term, index, s.disk.serial)
	s.disk.mu.Unlock()
	return &sink{store: s, snapshot: &storedSnapshot{meta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}}, nil
}

// List returns the snapshots, newest first.
func (s *RaftStore) List() ([]*raft.SnapshotMeta, error) {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	var metas []*raft.SnapshotMeta
	for _, snapshot := range slices.Backward(s.disk.snapshots) {
		meta := snapshot.meta
		metas = append(metas, &meta)
	}
	return metas, nil
}

// Open opens a snapshot for reading.
func (s *RaftStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	for _, snapshot := range s.disk.snapshots {
		if snapshot.meta.ID == id {
			meta := snapshot.meta
			return &meta, io.NopCloser(bytes.NewReader(snapshot.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("no snapshot %s", id)
}

type sink struct {
	store    *RaftStore
	snapshot *storedSnapshot
	done     bool
}

func (s *sink) ID() string { return s.snapshot.meta.ID }

func (s *sink) Write(p []byte) (int, error) {
	s.snapshot.data = append(s.snapshot.data, p...)
	return len(p), nil
}

func (s *sink) Cancel() error {
	s.done = true
	return nil
}

func (s *sink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	s.snapshot.meta.Size = int64(len(s.snapshot.data))
	return s.store.durable(func(d *RaftDisk) {
		d.snapshots = append(d.snapshots, s.snapshot)
		slices.SortStableFunc(d.snapshots, func(a, b *storedSnapshot) int {
			if a.meta.Term != b.meta.Term {
				return int(a.meta.Term) - int(b.meta.Term)
			}
			return int(a.meta.Index) - int(b.meta.Index)
		})
		if extra := len(d.snapshots) - snapshotsKept; extra > 0 {
			d.snapshots = slices.Clone(d.snapshots[extra:])
		}
	})
}
