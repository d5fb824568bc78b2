package segment_test

import (
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A forgetter notes how far the file that was made last has been written, synced
// and forgotten.
type forgetter struct {
	vfs.FS
	t                          *testing.T
	written, synced, forgotten int64
}

func (fs *forgetter) Create(name string) (vfs.File, error) {
	f, err := fs.FS.Create(name)
	fs.written, fs.synced, fs.forgotten = 0, 0, 0
	return forgetterFile{f, fs}, err
}

func (fs *forgetter) OpenWrite(name string) (vfs.File, error) {
	f, err := fs.FS.OpenWrite(name)
	fs.written, fs.synced, fs.forgotten = 0, 0, 0
	return forgetterFile{f, fs}, err
}

type forgetterFile struct {
	vfs.File
	fs *forgetter
}

func (f forgetterFile) WritevAt(pieces [][]byte, off int64) (int64, error) {
	n, err := f.File.WritevAt(pieces, off)
	f.fs.written = max(f.fs.written, off+n)
	return n, err
}

func (f forgetterFile) WriteSectors(pieces [][]byte, off int64) (int64, error) {
	n, err := f.File.WriteSectors(pieces, off)
	f.fs.written = max(f.fs.written, off+n)
	return n, err
}

func (f forgetterFile) Sync() error {
	err := f.File.Sync()
	f.fs.synced = f.fs.written
	return err
}

func (f forgetterFile) Forget(off, n int64) {
	if off != f.fs.forgotten || off+n > f.fs.synced {
		f.fs.t.Errorf("forgets %d to %d, with %d forgotten and %d synced", off, off+n, f.fs.forgotten, f.fs.synced)
	}
	f.fs.forgotten = off + n
	f.File.Forget(off, n)
}

// A segment that grows leaves the page cache behind itself, in whole steps and
// never before it is durable; what was written last stays until the segment is
// full. One that was written ahead stays: it is used again.
func TestGrowingSegmentIsForgotten(t *testing.T) {
	const keep, step = 4 << 20, 2 << 20
	disk := clustertest.NewDisk(1)
	fs := &forgetter{FS: disk.Mount(), t: t}
	s, _ := open(t, fs, segment.Options{SegmentBytes: 32 << 20})
	for n := range 20 {
		add(t, s, n, 1<<20)
		ok(t, s.Sync())
		if kept := fs.synced - fs.forgotten; kept < min(keep, fs.synced) || kept >= keep+step {
			t.Fatalf("keeps %d of %d octets", kept, fs.synced)
		}
	}
	ok(t, s.Roll())
	if kept := fs.synced - fs.forgotten; fs.forgotten == 0 || kept >= step {
		t.Errorf("a full segment keeps %d of %d octets", kept, fs.synced)
	}
	ok(t, s.Close())

	s, _ = open(t, fs, segment.Options{SegmentBytes: 32 << 20, PoolFiles: 1})
	for s.Prewrite() {
	}
	for n := range 20 {
		add(t, s, 100+n, 1<<20)
		ok(t, s.Sync())
	}
	ok(t, s.Roll())
	if fs.synced < 20<<20 || fs.forgotten != 0 {
		t.Errorf("of a file that was written ahead %d of %d octets are forgotten", fs.forgotten, fs.synced)
	}
	ok(t, s.Close())
}
