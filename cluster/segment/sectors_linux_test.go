package segment_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A counter counts what segments give a disk, past the page cache and through it.
type counter struct {
	vfs.FS
	sector        int
	sectors, past int // octets and writes in sectors
	pages         int // writes through the page cache
}

func (c *counter) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return counterFile{f, c}, nil
}

func (c *counter) Create(name string) (vfs.File, error)    { return c.file(c.FS.Create(name)) }
func (c *counter) OpenWrite(name string) (vfs.File, error) { return c.file(c.FS.OpenWrite(name)) }

type counterFile struct {
	vfs.File
	counter *counter
}

func (f counterFile) Sector() int { return f.counter.sector }

func (f counterFile) WriteSectors(p []byte, off int64) (int, error) {
	f.counter.sectors += len(p)
	f.counter.past++
	return f.File.WriteSectors(p, off)
}

func (f counterFile) WritevAt(pieces [][]byte, off int64) (int64, error) {
	f.counter.pages++
	return f.File.WritevAt(pieces, off)
}

func ahead(t *testing.T, fs vfs.FS) *segment.Set {
	t.Helper()
	s, _ := open(t, fs, segment.Options{SegmentBytes: 2 << 20, PoolFiles: 1})
	for s.Prewrite() {
	}
	return s
}

// Small batches into a file that was written ahead cost what they are long, in
// whole sectors, and the sector with the end of the one before.
func TestSmallBatchCostsItsSectors(t *testing.T) {
	c := &counter{FS: clustertest.NewDisk(1).Mount(), sector: 512}
	s := ahead(t, c)
	end := segment.FirstOffset
	add(t, s, 0, 1) // it begins the segment
	for n := 1; n < 100; n++ {
		from := end / 512 * 512
		end += segment.RecordBytes(8, 1)
		if n%2 == 0 {
			end += segment.RecordBytes(8, 3000)
			add(t, s, 1000+n, 3000)
		}
		c.sectors, c.past, c.pages = 0, 0, 0
		ok(t, s.Sync())
		if want := int((end+511)/512*512 - from); c.sectors != want || c.past != 1 || c.pages != 0 {
			t.Fatalf("batch %d: %d octets in %d writes, and %d others; want %d", n, c.sectors, c.past, c.pages, want)
		}
		add(t, s, n, 1)
	}
	ok(t, s.Close())
}

// Through the page cache goes what is long, what a segment grows by, and
// everything where the disk's sectors are as long as a page or not known.
func TestLargeBatchesAndGrowingSegments(t *testing.T) {
	for _, c := range []struct {
		what         string
		sector, size int
		ahead        bool
	}{
		{"long", 512, 300_000, true},
		{"a piece from where it lies", 512, 30_000, true},
		{"grows", 512, 20_000, false},
		{"long sectors", 4096, 100, true},
		{"no sectors", 0, 100, true},
	} {
		fs := &counter{FS: clustertest.NewDisk(1).Mount(), sector: c.sector}
		s, _ := open(t, fs, segment.Options{SegmentBytes: 2 << 20, PoolFiles: 1})
		for c.ahead && s.Prewrite() {
		}
		for n := range 5 {
			add(t, s, n, c.size)
			ok(t, s.Sync())
		}
		if fs.past != 0 || fs.pages != 5 {
			t.Errorf("%s: %d writes past the page cache, %d through it", c.what, fs.past, fs.pages)
		}
		ok(t, s.Close())
	}
}

// A segment that grows in small batches is written ahead in steps that become
// longer, never more than there was before, and once in a step the file grows.
func TestSmallBatchesWriteAhead(t *testing.T) {
	disk := clustertest.NewDisk(1)
	c := &counter{FS: disk.Mount(), sector: 512}
	s, _ := open(t, c, segment.Options{})
	const batches = 500
	end := segment.FirstOffset
	longest := int64(0)
	for n := range batches {
		add(t, s, n, 1000)
		ok(t, s.Sync())
		end += segment.RecordBytes(8, 1000)
		ahead := s.Segments()[0].Bytes - end
		if ahead > end-segment.FirstOffset+4096 {
			t.Fatalf("%d octets ahead after %d", ahead, end-segment.FirstOffset)
		}
		longest = max(longest, ahead)
	}
	if c.pages > 12 || c.past != batches-c.pages || longest < 200<<10 || longest > 260<<10 {
		t.Errorf("the file grew %d times, and %d batches went into what there was; at most %d octets ahead", c.pages, c.past, longest)
	}
	// A batch that is not small goes over what is there, and writes nothing ahead.
	add(t, s, batches, 300_000)
	ok(t, s.Sync())
	end += segment.RecordBytes(8, 300_000)
	add(t, s, batches+1, 20_000)
	ok(t, s.Sync())
	end += segment.RecordBytes(8, 20_000)
	if size := s.Segments()[0].Bytes; size != end {
		t.Errorf("%d octets for %d", size, end)
	}
	disk.Kill()
	s, d := open(t, disk.Mount(), segment.Options{})
	if len(d.records) != batches+2 {
		t.Errorf("%d records", len(d.records))
	}
	ok(t, s.Close())
}

// Where there is no room to write ahead, nothing fails.
func TestNoRoomAhead(t *testing.T) {
	disk := clustertest.NewDisk(1)
	s, _ := open(t, disk.Mount(), segment.Options{})
	add(t, s, 0, 10_000)
	disk.Inject(clustertest.Fault{Op: clustertest.OpWrite, Skip: 1, Err: syscall.ENOSPC, Short: true})
	ok(t, s.Sync())
	add(t, s, 1, 10_000)
	ok(t, s.Sync())
	disk.Kill()
	s, d := open(t, disk.Mount(), segment.Options{})
	if len(d.records) != 2 {
		t.Errorf("%d records", len(d.records))
	}
	ok(t, s.Close())
}

// Batches of every length, in whatever way they are written, read as they were
// written: at once, and after a restart; on the host while its page cache has
// everything that was read before.
func TestSectorsAndPagesMakeOneFile(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"disk": clustertest.NewDisk(1).Mount(), "host": vfs.OS(), "loop device": vfs.OS()} {
		t.Run(name, func(t *testing.T) {
			place := dir
			switch name {
			case "host":
				t.Chdir(t.TempDir())
				place = strings.TrimPrefix(dir, "/")
			case "loop device": // its sectors are short, the host's may not be
				d, err := clustertest.NewPowerDisk(t.TempDir(), 64<<20)
				if errors.Is(err, clustertest.ErrNoPowerDisk) {
					t.Skip(err)
				}
				ok(t, err)
				ok(t, d.Mount())
				t.Cleanup(func() { ok(t, d.Unmount()) })
				place = d.Dir + dir
			}
			o := segment.Options{Store: store, SegmentBytes: 512 << 10, PoolFiles: 2}
			s, err := segment.Open(fs, place, o, func(segment.Record) error { return nil })
			ok(t, err)
			for s.Prewrite() {
			}
			f, err := fs.Create(place + "/probe")
			ok(t, err)
			t.Logf("sectors of %d octets", f.Sector())
			ok(t, f.Close())
			r := rand.New(rand.NewPCG(1, 9))
			var places []segment.Place
			var sizes []int
			for range 150 {
				first := len(places)
				for range 1 + r.IntN(4) {
					sizes = append(sizes, r.IntN(1<<r.IntN(17)))
					places = append(places, add(t, s, len(places), sizes[len(places)]))
				}
				ok(t, s.Sync())
				for n := max(0, first-3); n < len(places); n++ {
					ok(t, read(s, places[n], n, sizes[n]))
				}
			}
			segments := s.Stats().Segments
			ok(t, s.Close())
			n := 0
			s, err = segment.Open(fs, place, o, func(r segment.Record) error {
				if r.Place != places[n] || r.Length != int64(sizes[n]) || r.Damaged {
					t.Errorf("record %d is delivered as %+v", n, r)
				}
				n++
				return nil
			})
			ok(t, err)
			if n != len(places) || segments < 3 {
				t.Fatalf("%d of %d records, %d segments", n, len(places), segments)
			}
			for n, at := range places {
				ok(t, read(s, at, n, sizes[n]))
			}
			ok(t, s.Close())
		})
	}
}
