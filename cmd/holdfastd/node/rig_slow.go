//go:build rig

package node

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// slowed makes each sync of bodies, of Raft's log and of term, vote and floor
// take longer by delay. Snapshots are left as they are: nobody waits for them.
func slowed(s Seams, delay time.Duration) Seams {
	wait := func() { sleep(delay) }
	s.Spool = slowFS{s.Spool, wait}
	s.Stores = func(dir string) (consensus.Stores, error) {
		stores, err := consensus.OpenStoresOn(slowFS{vfs.OS(), wait}, dir)
		if err == nil {
			stores.Stable = slowStable{stores.Stable, wait}
		}
		return stores, err
	}
	return s
}

// sleep sleeps in the kernel, as a sync does that takes long: for Go's own timers
// a millisecond more is nothing.
func sleep(delay time.Duration) {
	left := unix.NsecToTimespec(delay.Nanoseconds())
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &left, &left), unix.EINTR) {
	}
}

// A slowFS is a file system on a slower disk.
type slowFS struct {
	vfs.FS
	wait func() // before each sync
}

func (s slowFS) Create(name string) (vfs.File, error) { return s.file(s.FS.Create(name)) }

func (s slowFS) OpenWrite(name string) (vfs.File, error) { return s.file(s.FS.OpenWrite(name)) }

func (s slowFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return slowFile{f, s.wait}, nil
}

func (s slowFS) SyncDir(dir string) error {
	s.wait()
	return s.FS.SyncDir(dir)
}

type slowFile struct {
	vfs.File
	wait func()
}

func (f slowFile) Sync() error {
	f.wait()
	return f.File.Sync()
}

// stable is what Raft's stable store has.
type stable interface {
	Set(key, value []byte) error
	Get(key []byte) ([]byte, error)
	SetUint64(key []byte, value uint64) error
	GetUint64(key []byte) (uint64, error)
}

// A slowStable is a stable store on a slower disk. What has the value already is
// not written, and does not wait.
type slowStable struct {
	stable
	wait func()
}

func (s slowStable) Set(key, value []byte) error {
	if old, err := s.stable.Get(key); err != nil || !bytes.Equal(old, value) {
		s.transaction()
	}
	return s.stable.Set(key, value)
}

func (s slowStable) SetUint64(key []byte, value uint64) error {
	if old, err := s.stable.GetUint64(key); err != nil || old != value {
		s.transaction()
	}
	return s.stable.SetUint64(key, value)
}

// transaction waits as long as one of bbolt's, which syncs its pages and then its
// root.
func (s slowStable) transaction() {
	s.wait()
	s.wait()
}
