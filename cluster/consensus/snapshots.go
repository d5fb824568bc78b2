package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A sealedSnapshots is raft's FileSnapshotStore with a seal behind each state.
// The store below has a checksum over the state, kept in the metadata, and none
// over the metadata: a flipped bit there would make another index, term or
// configuration of it, and the copies of the queue would differ for good.
//
// The seal lies at the end of state.bin, where the checksum of the state covers
// it, and is the snapshot store's own: what is sent to other nodes and restored
// is without it. Numbers are big endian.
//
//	0   8  "hfsealed"
//	8   4  version, 1
//	12  8  index
//	20  8  term
//	28  8  index of the configuration
//	36  4  CRC32C of the configuration, encoded
//	40  8  octets of the state before the seal
//	48  4  CRC32C of bytes 0-47
//
// A snapshot without a seal is one that version 0.1 made: a seal is never lost
// without a wrong checksum.
//
// It also sees to it that a damaged snapshot is never passed over in silence.
// Raft would take the next older one; that is right only where the log goes on
// behind it up to where the damaged one ended. Otherwise acknowledged entries
// would be missing.
type sealedSnapshots struct {
	store raft.SnapshotStore
	dir   string // of the snapshots
	log   raft.LogStore

	mu sync.Mutex
	// failure is what was last found wrong.
	failure error
	// damagedTo is the greatest index of a snapshot that was found damaged.
	damagedTo uint64
}

const (
	sealMagic   = "hfsealed"
	sealVersion = 1
	sealBytes   = 52

	snapshotsDir = "snapshots" // where the store below puts them
	stateFile    = "state.bin"
	unfinished   = ".tmp" // behind the name of the directory of one that is not closed
)

var errSealed = errors.New("metadata and state do not belong together")

type seal struct {
	index, term, configurationIndex uint64
	configuration                   uint32
	octets                          int64
}

func sealOf(m *raft.SnapshotMeta, octets int64) seal {
	return seal{m.Index, m.Term, m.ConfigurationIndex, crc32.Checksum(raft.EncodeConfiguration(m.Configuration), castagnoli), octets}
}

func (s seal) encode() []byte {
	b := append(make([]byte, 0, sealBytes), sealMagic...)
	b = binary.BigEndian.AppendUint32(b, sealVersion)
	b = binary.BigEndian.AppendUint64(b, s.index)
	b = binary.BigEndian.AppendUint64(b, s.term)
	b = binary.BigEndian.AppendUint64(b, s.configurationIndex)
	b = binary.BigEndian.AppendUint32(b, s.configuration)
	b = binary.BigEndian.AppendUint64(b, uint64(s.octets))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Create begins a snapshot.
func (s *sealedSnapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.store.Create(v, index, term, c, ci, t)
	if err != nil {
		return nil, err
	}
	return &sealedSink{
		SnapshotSink: sink, dir: filepath.Join(s.dir, sink.ID()+unfinished),
		meta: raft.SnapshotMeta{Index: index, Term: term, Configuration: c, ConfigurationIndex: ci},
	}, nil
}

// A sealedSink puts the seal behind what was written.
type sealedSink struct {
	raft.SnapshotSink
	dir    string // in which its files are until it is closed
	meta   raft.SnapshotMeta
	octets int64
	ended  bool
}

func (s *sealedSink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	s.octets += int64(n)
	return n, err
}

func (s *sealedSink) Close() error {
	if s.ended {
		return s.SnapshotSink.Close()
	}
	s.ended = true
	if _, err := s.SnapshotSink.Write(sealOf(&s.meta, s.octets).encode()); err != nil {
		return errors.Join(err, s.SnapshotSink.Cancel())
	}
	// The store below syncs both files, and the directory above when this one has
	// its name, but never this one: a file system that does not sync a file's name
	// with the file could lose them, after the log was cut off up to here.
	if err := vfs.OS().SyncDir(s.dir); err != nil {
		return errors.Join(fmt.Errorf("sync the snapshot's directory: %w", err), s.SnapshotSink.Cancel())
	}
	return s.SnapshotSink.Close()
}

func (s *sealedSink) Cancel() error {
	s.ended = true
	return s.SnapshotSink.Cancel()
}

// List returns the snapshots whose metadata can be read, newest first. It is an
// error if there are snapshots and none can be read: Raft would begin with an
// empty queue.
func (s *sealedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.store.List()
	if err != nil {
		return nil, err
	}
	listed := make(map[string]bool)
	kept := metas[:0]
	for _, m := range metas {
		// What the directory is called is a second opinion on the metadata.
		if m.Version != raft.SnapshotVersionMax || !strings.HasPrefix(m.ID, fmt.Sprintf("%d-%d-", m.Term, m.Index)) {
			continue
		}
		if _, err := os.Stat(filepath.Join(s.dir, m.ID)); err != nil {
			continue
		}
		listed[m.ID] = true
		kept = append(kept, m)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	lost := 0
	for _, e := range entries {
		if index, ok := snapshotIndex(e.Name()); ok && e.IsDir() && !listed[e.Name()] && !s.older(kept, index) {
			_ = s.damage(index, fmt.Errorf("metadata of snapshot %s cannot be read", e.Name()))
			lost++
		}
	}
	if len(kept) == 0 && lost > 0 {
		return nil, damaged(fmt.Errorf("the metadata of all %d snapshots cannot be read", lost))
	}
	return kept, nil
}

// older reports whether a snapshot up to index is one that List need not
// mention: there are as many newer ones as are kept.
func (s *sealedSnapshots) older(kept []*raft.SnapshotMeta, index uint64) bool {
	return len(kept) >= snapshotsKept && index < kept[len(kept)-1].Index
}

// snapshotIndex reads the name of a snapshot's directory, term-index-time.
func snapshotIndex(name string) (uint64, bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return 0, false
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 64); err != nil {
			return 0, false
		}
	}
	index, err := strconv.ParseUint(parts[1], 10, 64)
	return index, err == nil
}

// damage notes that a snapshot up to index is damaged.
func (s *sealedSnapshots) damage(index uint64, cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damagedTo = max(s.damagedTo, index)
	s.failure = damaged(cause)
	return s.failure
}

// err returns what was last found wrong, or nil.
func (s *sealedSnapshots) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// Open opens a snapshot for reading, without its seal.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if index, ok := snapshotIndex(id); ok {
		if err := s.reaches(index); err != nil {
			return nil, nil, err
		}
		m, r, err := s.open(id)
		if err != nil {
			return nil, nil, s.damage(index, fmt.Errorf("snapshot %s: %w", id, err))
		}
		return m, r, nil
	}
	return nil, nil, fmt.Errorf("snapshot %q: not one of ours", id)
}

// reaches returns an error where a snapshot up to index is not enough: a newer
// one is damaged, and the log does not go on from here to its end.
func (s *sealedSnapshots) reaches(index uint64) error {
	s.mu.Lock()
	to := s.damagedTo
	s.mu.Unlock()
	if index >= to {
		return nil
	}
	first, err := s.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return err
	}
	if first == 0 || first > index+1 || last < to {
		return s.damage(to, fmt.Errorf("the snapshot up to entry %d cannot be read, and the log, from %d to %d, does not lead from the one up to %d to it", to, first, last, index))
	}
	return nil
}

func (s *sealedSnapshots) open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, r, err := s.store.Open(id)
	if err != nil {
		return nil, nil, err
	}
	octets, err := s.unseal(id, m)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	m.Size = octets
	return m, limited{io.LimitReader(r, octets), r}, nil
}

// limited is a reader without what lies behind the state.
type limited struct {
	io.Reader
	io.Closer
}

// unseal compares metadata and seal, and returns the octets of the state. The
// checksum of the state, seal included, was right.
func (s *sealedSnapshots) unseal(id string, m *raft.SnapshotMeta) (int64, error) {
	f, err := os.Open(filepath.Join(s.dir, id, stateFile))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if m.ID != id || m.Size != info.Size() {
		return 0, fmt.Errorf("%w: %s of %d octets, and %s of %d", errSealed, m.ID, m.Size, id, info.Size())
	}
	if info.Size() < sealBytes {
		return info.Size(), nil
	}
	b := make([]byte, sealBytes)
	octets := info.Size() - sealBytes
	if _, err := f.ReadAt(b, octets); err != nil {
		return 0, err
	}
	if string(b[:len(sealMagic)]) != sealMagic {
		return info.Size(), nil // of version 0.1
	}
	if !bytes.Equal(b, sealOf(m, octets).encode()) {
		return 0, errSealed
	}
	return octets, nil
}
