package sim

import (
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// shortSegmentBytes is the length of segments in worlds with failpoints: some
// letters fill one.
const shortSegmentBytes = 16 << 10

// failpointOf returns what a process tells of the moments that it comes to, until
// it is dead; nil where nobody wants to know.
func (w *World) failpointOf(p *process) controls.Failpoint {
	if w.failpoint == nil {
		return nil
	}
	return func(moment string) {
		if !p.dead.Load() {
			w.failpoint(p.name, moment)
		}
	}
}

// An observedFS is a file system with failpoints around what makes segments
// durable.
type observedFS struct {
	vfs.FS
	at controls.Failpoint
}

// store names the store that a file belongs to, by its directory: what is above that has
// any name.
func store(path string) string {
	if filepath.Base(filepath.Dir(path)) == "spool" {
		return "spool: "
	}
	return "log: "
}

func (f observedFS) Create(name string) (vfs.File, error) { return f.file(name)(f.FS.Create(name)) }

func (f observedFS) OpenWrite(name string) (vfs.File, error) {
	return f.file(name)(f.FS.OpenWrite(name))
}

func (f observedFS) file(name string) func(vfs.File, error) (vfs.File, error) {
	return func(file vfs.File, err error) (vfs.File, error) {
		if err != nil || filepath.Ext(name) == "" {
			return file, err
		}
		return observedFile{file, store(name), f.at}, nil
	}
}

// Rename gives a segment the name under which it counts, or takes it away.
func (f observedFS) Rename(from, to string) error {
	err := f.FS.Rename(from, to)
	if err == nil && filepath.Ext(to) == ".seg" {
		f.at.At(store(to) + "segment begun")
	} else if err == nil && filepath.Ext(from) == ".seg" {
		f.at.At(store(to) + "segment freed")
	}
	return err
}

func (f observedFS) Remove(name string) error {
	err := f.FS.Remove(name)
	if err == nil && filepath.Ext(name) == ".seg" {
		f.at.At(store(name) + "segment freed")
	}
	return err
}

type observedFile struct {
	vfs.File
	store string
	at    controls.Failpoint
}

func (f observedFile) Sync() error {
	f.at.At(f.store + "written")
	err := f.File.Sync()
	if err == nil {
		f.at.At(f.store + "synced")
	}
	return err
}

// observedStores puts failpoints around term, vote, floor and snapshots.
func observedStores(s consensus.Stores, at controls.Failpoint) consensus.Stores {
	s.Stable, s.Snapshots = observedStable{s.Stable, at}, observedSnapshots{s.Snapshots, at}
	return s
}

type observedStable struct {
	raft.StableStore
	at controls.Failpoint
}

// The keys of Raft and of the floor.
var keyNames = map[string]string{"CurrentTerm": "term", "LastVoteCand": "vote", "HoldfastFloor": "floor"}

func (s observedStable) Set(key, value []byte) error {
	return s.observed(key, func() error { return s.StableStore.Set(key, value) })
}

func (s observedStable) SetUint64(key []byte, value uint64) error {
	return s.observed(key, func() error { return s.StableStore.SetUint64(key, value) })
}

func (s observedStable) observed(key []byte, set func() error) error {
	name := keyNames[string(key)]
	if name == "" {
		return set()
	}
	s.at.At(name + ": to be written")
	err := set()
	if err == nil {
		s.at.At(name + ": written")
	}
	return err
}

type observedSnapshots struct {
	raft.SnapshotStore
	at controls.Failpoint
}

func (s observedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, configurationIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, configurationIndex, t)
	if err != nil {
		return nil, err
	}
	return observedSink{sink, s.at}, nil
}

type observedSink struct {
	raft.SnapshotSink
	at controls.Failpoint
}

// Close is where a snapshot gets the name under which it counts.
func (s observedSink) Close() error {
	s.at.At("snapshot: written")
	err := s.SnapshotSink.Close()
	if err == nil {
		s.at.At("snapshot: there")
	}
	return err
}
