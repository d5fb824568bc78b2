//go:build controls

package node

import (
	"fmt"
	"os"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// brokenRules names the rules that this node breaks, in the build for negative
// controls, which is never the product: controls.Parse reads it.
const brokenRules = "HOLDFAST_CONTROLS"

func broken(s Seams) Seams {
	rules := os.Getenv(brokenRules)
	if rules == "" {
		return s
	}
	on, err := controls.Parse(rules)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", brokenRules, err))
	}
	s.Controls = on
	if on.Has(controls.FsyncRemoved) {
		s.Spool = unsyncedFS{s.Spool}
		s.Stores = func(dir string) (consensus.Stores, error) { return consensus.OpenStoresOn(unsyncedFS{vfs.OS()}, dir) }
	}
	s.Log.Error("this node breaks rules on purpose: it loses mail", "rules", rules)
	return s
}

// An unsyncedFS is a file system that says it has synced what it has not.
type unsyncedFS struct{ vfs.FS }

func (u unsyncedFS) Create(name string) (vfs.File, error) { return unsynced(u.FS.Create(name)) }

func (u unsyncedFS) OpenWrite(name string) (vfs.File, error) { return unsynced(u.FS.OpenWrite(name)) }

func (unsyncedFS) SyncDir(string) error { return nil }

func unsynced(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

type unsyncedFile struct{ vfs.File }

func (unsyncedFile) Sync() error { return nil }
