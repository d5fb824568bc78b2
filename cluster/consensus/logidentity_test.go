package consensus

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const identityDir = "/data/raft/log"

var identityOrder = clustertest.Order{Lasting: func(base string) bool { return strings.HasSuffix(base, ".seg") }}

// A binder is a member that opens its log and stores an entry, again and again.
// Its stable store is durable at once: what counts is which of the two comes
// first.
type binder struct {
	disk     *clustertest.Disk
	stable   *clustertest.RaftStore
	stored   uint64 // acknowledged
	tried    uint64
	careless careless
	identity []byte // as the stable store had it when an entry was stored
}

// live opens the log and stores one entry.
func (b *binder) live() error {
	files := b.careless
	files.FS = b.disk.Mount()
	log, end, err := OpenLog(&files, identityDir, b.stable, raftlog.Options{SegmentBytes: 16 << 10, PoolFiles: 1})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { _ = end() }()
	id, err := b.stable.Get(logIDKey)
	if err != nil || b.identity != nil && string(id) != string(b.identity) {
		return fmt.Errorf("the log is called %s, was called %s: %w", id, b.identity, err)
	}
	last, err := log.LastIndex()
	if err != nil || last < b.stored || last > b.tried {
		return fmt.Errorf("last entry is %d, %d were stored, %d tried: %w", last, b.stored, b.tried, err)
	}
	b.tried = last + 1
	if err := log.StoreLog(&raft.Log{Index: last + 1, Term: 1, Data: make([]byte, 3000)}); err != nil {
		return err
	}
	b.stored, b.identity = last+1, id
	b.disk.Note(clustertest.Acknowledged)
	return nil
}

// careless leaves out a sync of the log's name.
type careless struct {
	vfs.FS
	file, dir bool // which
	named     bool // the file was made just now
}

func (c *careless) Create(name string) (vfs.File, error) {
	f, err := c.FS.Create(name)
	if err != nil || filepath.Base(name) != logIDFile {
		return f, err
	}
	c.named = true
	return carelessFile{f, c.file}, nil
}

func (c *careless) SyncDir(dir string) error {
	skip := c.dir && c.named
	c.named = false
	if skip {
		return nil
	}
	return c.FS.SyncDir(dir)
}

type carelessFile struct {
	vfs.File
	skip bool
}

func (f carelessFile) Sync() error {
	if f.skip {
		return nil
	}
	return f.File.Sync()
}

// The power fails at each operation of a member's first start, and of the
// starts after it. A log is never taken for another's, and keeps what it
// acknowledged.
func TestLogIdentityOutlivesPowerFailures(t *testing.T) {
	if err := identityCrashes(t, careless{}); err != nil {
		t.Error(err)
	}
}

// The test finds a name that the stable store has before the disk has it.
func TestLogIdentityCrashesFindALateName(t *testing.T) {
	for name, c := range map[string]careless{"file": {file: true}, "directory": {dir: true}} {
		if err := identityCrashes(t, c); !errors.Is(err, ErrDamaged) {
			t.Errorf("without the sync of the %s: %v", name, err)
		}
	}
}

func identityCrashes(t *testing.T, c careless) error {
	t.Helper()
	for operation := 0; ; operation++ {
		crashed := false
		for fate := range uint64(8) {
			var err error
			synctest.Test(t, func(t *testing.T) { crashed, err = identityCrash(operation, fate, c) })
			if err != nil {
				return fmt.Errorf("operation %d, fate %d: %w", operation, fate, err)
			}
		}
		if !crashed {
			t.Logf("%d operations", operation)
			return nil
		}
	}
}

// identityCrash reports whether the power failed: three lives have fewer
// operations than that if not.
func identityCrash(operation int, fate uint64, c careless) (crashed bool, err error) {
	disk := clustertest.NewDisk(fate)
	disk.Trace(true)
	b := &binder{disk: disk, stable: clustertest.NewRaftDisk(fate, 0).Open(), careless: c}
	disk.Inject(clustertest.Fault{Skip: operation, Crash: true})
	for life := 0; life < 3; life++ {
		err := b.live()
		if errors.Is(err, clustertest.ErrKilled) && !crashed {
			crashed = true
			disk.Crash()
			life = -1
			continue
		}
		if err != nil {
			return crashed, err
		}
	}
	return crashed, identityOrder.Check(disk.Trace(false))
}

// A member whose log is gone, or is another's, does not go on under its name.
func TestLogOfAnotherMemberIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &binder{disk: clustertest.NewDisk(1), stable: clustertest.NewRaftDisk(1, 0).Open()}
		if err := b.live(); err != nil {
			t.Fatal(err)
		}
		if name, err := b.disk.ReadFile(filepath.Join(identityDir, logIDFile)); err != nil || string(name) != string(b.identity) {
			t.Errorf("%s, %v", name, err)
		}
		for _, seed := range []uint64{2, 3} {
			b.disk, b.stored, b.tried = clustertest.NewDisk(seed), 0, 0
			if seed == 3 {
				other := &binder{disk: b.disk, stable: clustertest.NewRaftDisk(seed, 0).Open()}
				if err := other.live(); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.live(); !errors.Is(err, ErrDamaged) {
				t.Errorf("disk %d: %v", seed, err)
			}
		}
	})
}
