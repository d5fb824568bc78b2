package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

const (
	// lockTimeout is how long to wait for another process that has the log
	// open.
	lockTimeout = time.Second
	// snapshotsKept is how many snapshots stay on disk.
	snapshotsKept = 2
	// logFile is the log with term, vote and floor, inside the directory given.
	logFile = "raft.db"
	// dirMode: entries hold envelopes.
	dirMode = 0o700
)

// OpenStores opens, or makes, a member's stores in dir: the log with term,
// vote and floor in raft.db, and the directory snapshots.
func OpenStores(dir string) (Stores, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return Stores{}, fmt.Errorf("open stores: %w", err)
	}
	db, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, logFile),
		BoltOptions: &bbolt.Options{
			Timeout: lockTimeout,
			// Written with each commit, the list of free pages is what makes a
			// log slow that was once large. It is rebuilt at open.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return Stores{}, fmt.Errorf("open %s: %w", logFile, err)
	}
	if err := syncDir(dir); err != nil {
		return Stores{}, errors.Join(fmt.Errorf("open stores: %w", err), db.Close())
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return Stores{}, errors.Join(fmt.Errorf("open snapshots: %w", err), db.Close())
	}
	return Stores{Log: db, Stable: db, Snapshots: snapshots, Close: db.Close}, nil
}

// syncDir makes the new file's name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
