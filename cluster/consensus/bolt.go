package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const (
	// lockTimeout is how long to wait for another process that has the stores
	// open.
	lockTimeout = time.Second
	lockRetry   = 50 * time.Millisecond
	// snapshotsKept is how many snapshots stay on disk.
	snapshotsKept = 2
	// logFile is the log with term, vote and floor, inside the directory given.
	logFile = "raft.db"
	// lockFile is what a process that uses the directory has locked.
	lockFile = "LOCK"
	// fileMode: entries hold envelopes.
	fileMode = 0o600
)

// OpenStores opens, or makes, a member's stores in dir: the log with term,
// vote and floor in raft.db, and the directory snapshots. ErrDamaged says that
// what lies there cannot be what was written.
func OpenStores(dir string) (_ Stores, err error) {
	fs := vfs.OS()
	if err := fs.MkdirAll(dir); err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	lock, err := lockDir(fs, dir)
	if err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	db, stable, err := openBoltStores(fs, filepath.Join(dir, logFile))
	if err != nil {
		return Stores{}, fmt.Errorf("open %s: %w", logFile, err)
	}
	closeBoth := func() error { return errors.Join(guarded(db.Close), lock.Close()) }
	if err := fs.SyncDir(dir); err != nil {
		return Stores{}, errors.Join(fmt.Errorf("open stores: %w", err), db.Close())
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return Stores{}, errors.Join(fmt.Errorf("open snapshots: %w", err), db.Close())
	}
	return Stores{Log: db, Stable: stable, Snapshots: snapshots, Close: closeBoth}, nil
}

// openBoltStores opens, or makes, a raft-boltdb and the record in it.
func openBoltStores(fs vfs.FS, path string) (*raftboltdb.BoltStore, *boltStable, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		if err = found(path); err == nil {
			err = fs.SyncDir(filepath.Dir(path))
		}
		if err == nil {
			file, err = os.Open(path)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	record, old, err := readRecord(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, nil, err
	}
	if old {
		if err := adopt(path, record); err != nil {
			return nil, nil, fmt.Errorf("add checksums: %w", err)
		}
	}
	var db *raftboltdb.BoltStore
	if err := guarded(func() (err error) { db, err = openBolt(path); return err }); err != nil {
		return nil, nil, err
	}
	return db, newBoltStable(db, record), nil
}

func readRecord(file *os.File) (r stableRecord, old bool, err error) {
	info, err := file.Stat()
	if err != nil {
		return stableRecord{}, false, err
	}
	f, err := readBoltFile(file, info.Size())
	if err == nil {
		r, old, err = f.stable()
	}
	if err != nil {
		return stableRecord{}, false, damaged(err)
	}
	return r, old, nil
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions(), MsgpackUseNewTimeFormat: true})
}

func boltOptions() *bbolt.Options {
	return &bbolt.Options{
		Timeout: lockTimeout,
		// Written with each commit, the list of free pages is what makes a
		// log slow that was once large. It is rebuilt at open.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
	}
}

// lockDir keeps other processes out of dir, until Close. It waits a moment for
// one that is about to end.
func lockDir(fs vfs.FS, dir string) (io.Closer, error) {
	for until := time.Now().Add(lockTimeout); ; time.Sleep(lockRetry) {
		lock, err := fs.Lock(filepath.Join(dir, lockFile))
		if !errors.Is(err, vfs.ErrLocked) || time.Now().After(until) {
			return lock, err
		}
	}
}
