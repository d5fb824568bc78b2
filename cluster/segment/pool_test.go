package segment_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
)

const small = 64 << 10 // a segment of these tests

func files(disk *clustertest.Disk, suffix string) (names []string) {
	for _, name := range disk.Names(dir) {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	return names
}

// Prewrite fills the pool to its limit in small steps; segments are made of its
// files, and freed ones go back there. Nothing grows, and no name is left over.
func TestPool(t *testing.T) {
	disk := clustertest.NewDisk(1)
	o := segment.Options{SegmentBytes: 3 << 20, PoolFiles: 2}
	s, _ := open(t, disk.Mount(), o)
	steps := 0
	for s.Prewrite() {
		steps++
	}
	if st := s.Stats(); st.PoolFiles != 2 || st.PoolBytes != 6<<20 || s.PrewriteWanted() || steps != 5 {
		t.Fatalf("after %d steps: %+v", steps, st)
	}
	first := add(t, s, 0, 2<<20)
	second := add(t, s, 1, 2<<20)
	third := add(t, s, 2, 2<<20) // the pool is empty: it grows
	ok(t, s.Roll())
	if st := s.Stats(); st.PoolFiles != 0 || st.Segments != 3 || len(files(disk, ".free")) != 0 {
		t.Fatalf("%+v, %v", st, disk.Names(dir))
	}
	ok(t, s.Free(first.Segment, second.Segment, third.Segment))
	if st := s.Stats(); st.PoolFiles != 2 || st.Segments != 0 || len(files(disk, ".free")) != 2 || len(files(disk, ".seg")) != 0 {
		t.Fatalf("%+v, %v", st, disk.Names(dir))
	}
	at := add(t, s, 3, 2<<20)
	if at.Segment != third.Segment+1 {
		t.Errorf("number %d is used again", at.Segment)
	}
	ok(t, s.Sync())
	ok(t, read(s, at, 3, 2<<20))
	disk.Kill()

	// The next process finds the pool, and in the recycled file only what was
	// written since.
	s, d := open(t, disk.Mount(), o)
	if len(d.records) != 1 || s.Stats().PoolFiles != 1 {
		t.Errorf("%v, %+v", d.order, s.Stats())
	}
	ok(t, s.Close())
	o.PoolFiles = 0
	s, _ = open(t, disk.Mount(), o)
	if names := files(disk, ".free"); len(names) != 0 || s.PrewriteWanted() {
		t.Errorf("a pool of none keeps %v", names)
	}
	ok(t, s.Close())
}

// A recycled file holds the records of its earlier life, whole and in place.
// None of them is delivered, wherever the new life ends.
func TestRecycledFileForgets(t *testing.T) {
	for size := range 12 {
		disk := clustertest.NewDisk(1)
		o := segment.Options{SegmentBytes: small, PoolFiles: 1}
		s, _ := open(t, disk.Mount(), o)
		var last segment.Place
		for n := range 14 {
			last = add(t, s, n, 4000)
		}
		ok(t, s.Roll())
		ok(t, s.Free(last.Segment))
		add(t, s, 100, 4000*size)
		ok(t, s.Sync())
		disk.Kill()
		s, d := open(t, disk.Mount(), o)
		if !slices.Equal(d.order, []int{100}) {
			t.Fatalf("size %d: delivered %v", size, d.order)
		}
		ok(t, s.Close())
	}
}

// A file with an open reader is not used again: the reader sees what it opened,
// whatever is written afterwards.
func TestReaderKeepsItsFile(t *testing.T) {
	disk := clustertest.NewDisk(1)
	s, _ := open(t, disk.Mount(), segment.Options{SegmentBytes: small, PoolFiles: 3})
	at := add(t, s, 0, 50_000)
	ok(t, s.Roll())
	r, err := s.Reader(at.Segment)
	ok(t, err)
	ok(t, s.Free(at.Segment))
	if _, err := s.Reader(at.Segment); !errors.Is(err, segment.ErrGone) {
		t.Errorf("a freed segment opens: %v", err)
	}
	if st := s.Stats(); st.PoolFiles != 0 {
		t.Errorf("a file with a reader is in the pool: %+v", st)
	}
	for n := range 3 {
		add(t, s, 1+n, 50_000)
	}
	ok(t, s.Sync())
	_, payload, err := r.Read(at, nil)
	if err != nil || string(payload) != string(octets(0, 50_000)) {
		t.Errorf("the reader got others: %v", err)
	}
	ok(t, r.Close())
	ok(t, r.Close())
	ok(t, s.Close())
}

// An error while the pool is filled fails nothing, even an fsync's: the file is
// thrown away, and segments grow.
func TestPoolErrorsAreHarmless(t *testing.T) {
	for _, f := range []clustertest.Fault{
		{Op: clustertest.OpCreate, Err: syscall.ENOSPC},
		{Op: clustertest.OpWrite, Err: syscall.ENOSPC, Short: true},
		{Op: clustertest.OpSync, Err: syscall.EIO},
		{Op: clustertest.OpWrite, Skip: 1, Err: syscall.EDQUOT},
	} {
		disk := clustertest.NewDisk(1)
		s, _ := open(t, disk.Mount(), segment.Options{SegmentBytes: 3 << 20, PoolFiles: 2})
		disk.Inject(f)
		for s.Prewrite() {
		}
		if st := s.Stats(); st.PoolFiles != 0 || s.PrewriteWanted() || len(files(disk, ".free")) != 0 {
			t.Errorf("%v: %+v, %v", f, st, disk.Names(dir))
		}
		at := add(t, s, 0, 1000)
		ok(t, s.Sync())
		ok(t, s.Roll())
		ok(t, s.Free(at.Segment))
		if st := s.Stats(); st.PoolFiles != 1 {
			t.Errorf("%v: freed segments do not come to the pool: %+v", f, st)
		}
		ok(t, s.Close())
	}
}

// A file that somebody took out of the pool is no reason to fail.
func TestPoolFileVanishes(t *testing.T) {
	disk := clustertest.NewDisk(1)
	fs := disk.Mount()
	s, _ := open(t, fs, segment.Options{SegmentBytes: 1 << 20, PoolFiles: 1})
	for s.Prewrite() {
	}
	ok(t, fs.Remove(dir+"/"+files(disk, ".free")[0]))
	at := add(t, s, 0, 10)
	ok(t, s.Sync())
	ok(t, read(s, at, 0, 10))
	ok(t, s.Close())
}
