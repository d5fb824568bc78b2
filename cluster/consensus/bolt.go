package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const (
	// lockTimeout is how long to wait for another process that has the stores
	// open.
	lockTimeout = time.Second
	lockRetry   = 50 * time.Millisecond
	// snapshotsKept is how many snapshots stay on disk.
	snapshotsKept = 2
	// logFile has term, vote and floor, inside the directory given.
	logFile = "raft.db"
	// lockFile is what a process that uses the directory has locked.
	lockFile = "LOCK"
	// fileMode: entries hold envelopes.
	fileMode = 0o600
)

// OpenStores opens, or makes, a member's stores in dir: term, vote and floor in
// raft.db, the log in the directory log, and the directory snapshots. ErrDamaged
// says that what lies there cannot be what was written. A log that an older
// version kept in raft.db is moved.
func OpenStores(dir string) (Stores, error) { return OpenStoresOn(vfs.OS(), dir) }

// OpenStoresOn is OpenStores with the log on a file system of the caller's. The
// rest is on the host's: raft.db and the snapshots are others' code.
func OpenStoresOn(fs vfs.FS, dir string) (Stores, error) {
	return openStores(dir, func(db *raftboltdb.BoltStore, stable raft.StableStore) (raft.LogStore, func() error, error) {
		return openLog(fs, filepath.Join(dir, logDirectory), db, stable, raftlog.Options{PoolFiles: logPoolFiles})
	})
}

// OpenLog opens, or makes, the log in dir on any file system, as OpenStores does
// on the host's: simulations lay it on disks that crash. The log must be the one
// that the stable store belongs to; ErrDamaged says that it is not, or that what
// lies there cannot be what was written.
func OpenLog(files vfs.FS, dir string, stable raft.StableStore, o raftlog.Options) (_ raft.LogStore, end func() error, err error) {
	return openLog(files, dir, nil, stable, o)
}

// openLog opens the log, and moves into it what an older version has in old.
func openLog(files vfs.FS, dir string, old *raftboltdb.BoltStore, stable raft.StableStore, o raftlog.Options) (_ raft.LogStore, end func() error, err error) {
	l, err := openSegmentLog(files, dir, o)
	if err != nil {
		return nil, nil, fmt.Errorf("open the log: %w", err)
	}
	if old != nil {
		err = migrateLog(old, l)
	}
	if err == nil {
		err = bindLog(files, dir, stable)
	}
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, l.Close, nil
}

// OpenBoltStores is OpenStores with the log in raft.db too, for comparison: each
// write of entries takes two syncs there, and rewrites whole pages. A directory
// whose log was moved to segments is refused.
func OpenBoltStores(dir string) (Stores, error) {
	return openStores(dir, func(db *raftboltdb.BoltStore, stable raft.StableStore) (raft.LogStore, func() error, error) {
		if id, err := stable.Get(logIDKey); err != nil && !isKeyNotFound(err) {
			return nil, nil, err
		} else if len(id) > 0 {
			return nil, nil, errMoved
		}
		return db, func() error { return nil }, nil
	})
}

var errMoved = errors.New("the log lies in segments")

const (
	// logDirectory has the segments of the log, inside the directory given.
	logDirectory = "log"
	// logPoolFiles is how many files of the log are made ready before they are
	// needed.
	logPoolFiles = 1
)

// openStores opens raft.db and the snapshots, and with logOf the log.
func openStores(dir string, logOf func(*raftboltdb.BoltStore, raft.StableStore) (raft.LogStore, func() error, error)) (_ Stores, err error) {
	fs := vfs.OS()
	if err := fs.MkdirAll(dir); err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	var ends []func() error // in the order in which to close
	closeAll := func() error {
		var errs []error
		for _, end := range ends {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	lock, err := lockDir(fs, dir)
	if err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	ends = append(ends, lock.Close)
	db, stable, err := openBoltStores(fs, filepath.Join(dir, logFile))
	if err != nil {
		return Stores{}, fmt.Errorf("open %s: %w", logFile, err)
	}
	ends = slices.Insert(ends, 0, func() error { return guarded(db.Close) })
	if err := fs.SyncDir(dir); err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	log, closeLog, err := logOf(db, stable)
	if err != nil {
		return Stores{}, err
	}
	ends = slices.Insert(ends, 0, closeLog)
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return Stores{}, fmt.Errorf("open snapshots: %w", err)
	}
	sealed := &sealedSnapshots{store: snapshots, dir: filepath.Join(dir, snapshotsDir), log: log}
	return Stores{Log: log, Stable: stable, Snapshots: sealed, Close: closeAll}, nil
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
