package consensus

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A countingFS counts the syncs of the files that are written to.
type countingFS struct {
	vfs.FS
	syncs *atomic.Int64
}

func (c countingFS) Create(name string) (vfs.File, error) {
	f, err := c.FS.Create(name)
	return countedFile{f, c.syncs}, err
}

func (c countingFS) OpenWrite(name string) (vfs.File, error) {
	f, err := c.FS.OpenWrite(name)
	return countedFile{f, c.syncs}, err
}

type countedFile struct {
	vfs.File
	syncs *atomic.Int64
}

func (f countedFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

// TestOpenStoresOn: the log is on the file system given, and each batch of entries is
// synced there.
func TestOpenStoresOn(t *testing.T) {
	var syncs atomic.Int64
	dir := filepath.Join(t.TempDir(), "raft")
	s, err := OpenStoresOn(countingFS{vfs.OS(), &syncs}, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, s)
	batch := func(first uint64) []*raft.Log {
		return []*raft.Log{{Index: first, Term: 1, Data: []byte("a")}, {Index: first + 1, Term: 1, Data: []byte("b")}}
	}
	if err := s.Log.StoreLogs(batch(1)); err != nil {
		t.Fatal(err)
	}
	before := syncs.Load()
	if err := s.Log.StoreLogs(batch(3)); err != nil {
		t.Fatal(err)
	}
	if n := syncs.Load() - before; before == 0 || n < 1 {
		t.Errorf("%d syncs until the first batch was stored, %d for the second", before, n)
	}
}
