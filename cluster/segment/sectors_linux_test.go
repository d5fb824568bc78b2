package segment_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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
	// pieces are the last write's in sectors, and at where it began.
	pieces [][]byte
	at     int64
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

func (f counterFile) WriteSectors(pieces [][]byte, off int64) (int64, error) {
	n, err := f.File.WriteSectors(pieces, off)
	f.counter.sectors += int(n)
	f.counter.past++
	f.counter.pieces, f.counter.at = slices.Clone(pieces), off
	return n, err
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

// Through the page cache goes what is neither small nor large, what a segment grows
// by in little steps, and everything where the disk's sectors are not known; what is
// small also where they are as long as a page.
func TestBatchesThroughThePageCache(t *testing.T) {
	for _, c := range []struct {
		what         string
		sector, size int
		ahead        bool
	}{
		{"a piece from where it lies", 512, 120_000, true},
		{"grows", 512, 20_000, false},
		{"long sectors", 4096, 100, true},
		{"no sectors", 0, 100, true},
		{"no sectors, large", 0, 300_000, true},
		{"no sectors, large and grows", 0, 300_000, false},
		{"too long sectors", 8192, 300_000, true},
	} {
		fs := &counter{FS: clustertest.NewDisk(1).Mount(), sector: c.sector}
		s, _ := open(t, fs, segment.Options{SegmentBytes: 2 << 20, PoolFiles: 1})
		for c.ahead && s.Prewrite() {
		}
		end := segment.FirstOffset
		for n := range 5 {
			if at := addChunked(t, s, n, c.size); at.Offset() != end {
				t.Errorf("%s: record %d lies at %d, not at %d", c.what, n, at.Offset(), end)
			}
			end += segment.RecordBytes(8, int64(c.size))
			ok(t, s.Sync())
		}
		if fs.past != 0 || fs.pages != 5 {
			t.Errorf("%s: %d writes past the page cache, %d through it", c.what, fs.past, fs.pages)
		}
		ok(t, s.Close())
	}
}

// A large payload goes to the disk out of its own memory, past the page cache,
// whether the segment grows or not, and all that is in its batch goes with it. It
// costs less than two pages more than it is long.
func TestLargePayloadIsNotCopied(t *testing.T) {
	for _, c := range []struct {
		what   string
		sector int
		ahead  bool
	}{
		{"short sectors, ahead", 512, true},
		{"long sectors, ahead", 4096, true},
		{"short sectors, grows", 512, false},
		{"long sectors, grows", 4096, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			const size, more = 1<<20 + 12_345, 30_000
			disk := clustertest.NewDisk(1)
			fs := &counter{FS: disk.Mount(), sector: c.sector}
			s, _ := open(t, fs, segment.Options{SegmentBytes: 8 << 20, PoolFiles: 1})
			for c.ahead && s.Prewrite() {
			}
			var places []segment.Place
			for n := 0; n < 10; n += 2 {
				chunks := chunked(n, size)
				at, err := s.Append(kindThing, label(n), segment.NewPayload(chunks...))
				ok(t, err)
				if at.Payload(8)%4096 != 0 {
					t.Errorf("payload %d begins at %d", n, at.Payload(8))
				}
				places = append(places, at, addChunked(t, s, n+1, more))
				fs.sectors, fs.past, fs.pages = 0, 0, 0
				ok(t, s.Sync())
				if fs.past != 1 || fs.pages != 0 || fs.sectors > size+more+4*4096 {
					t.Errorf("%d writes past the page cache, of %d octets, and %d through it", fs.past, fs.sectors, fs.pages)
				}
				at2, found := fs.at, 0
				for _, p := range fs.pieces {
					if found < len(chunks) && &p[0] == &chunks[found][0] {
						if want := at.Payload(8) + int64(found*len(chunks[0])); at2 != want {
							t.Errorf("chunk %d goes to %d, not to %d", found, at2, want)
						}
						found++
					}
					at2 += int64(len(p))
				}
				if found != len(chunks)-1 && found != len(chunks) {
					t.Errorf("%d of %d chunks are written from where they lie", found, len(chunks))
				}
			}
			for n, at := range places {
				ok(t, read(s, at, n, []int{size, more}[n%2]))
			}
			disk.Kill()
			s, d := open(t, disk.Mount(), segment.Options{SegmentBytes: 8 << 20, PoolFiles: 1})
			if st := s.Stats(); len(d.records) != len(places) || st.Damage != 0 || st.Torn != 0 {
				t.Errorf("%d records, %+v", len(d.records), st)
			}
			for n, at := range places {
				ok(t, read(s, at, n, []int{size, more}[n%2]))
			}
			ok(t, s.Close())
		})
	}
}

// Where no room can be set aside, a large payload goes through the page cache, and
// nothing fails.
func TestLargePayloadWithoutRoom(t *testing.T) {
	disk := clustertest.NewDisk(1)
	fs := &counter{FS: disk.Mount(), sector: 4096}
	s, _ := open(t, fs, segment.Options{})
	disk.Inject(clustertest.Fault{Op: clustertest.OpTruncate, Err: syscall.ENOSPC})
	for n := range 3 {
		addChunked(t, s, n, 1<<20)
		ok(t, s.Sync())
	}
	if fs.past != 0 || fs.pages != 3 {
		t.Errorf("%d writes past the page cache, %d through it", fs.past, fs.pages)
	}
	ok(t, s.Close())
	s, d := open(t, disk.Mount(), segment.Options{})
	if len(d.records) != 3 {
		t.Errorf("%d records", len(d.records))
	}
	ok(t, s.Close())
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
	add(t, s, batches, 120_000)
	ok(t, s.Sync())
	end += segment.RecordBytes(8, 120_000)
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
			o := segment.Options{Store: store, SegmentBytes: 1 << 20, PoolFiles: 2}
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
					size, put := r.IntN(1<<r.IntN(17)), add
					if r.IntN(5) == 0 {
						size, put = size+segment.LargeBytesMin, addChunked
					}
					sizes = append(sizes, size)
					places = append(places, put(t, s, len(places), size))
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

// Readers that read ahead of what is written keep nothing stale in the host's page
// cache: what a sync has covered reads as it was written.
func TestReadersBesideWritesPastThePageCache(t *testing.T) {
	t.Chdir(t.TempDir())
	place := strings.TrimPrefix(dir, "/")
	s, err := segment.Open(vfs.OS(), place, segment.Options{Store: store, SegmentBytes: 4 << 20, PoolFiles: 2}, func(segment.Record) error { return nil })
	ok(t, err)
	for s.Prewrite() {
	}
	r := rand.New(rand.NewPCG(1, 5))
	stop, newest := make(chan struct{}), make(chan segment.Number, 1)
	var readers sync.WaitGroup
	readers.Go(func() {
		b := make([]byte, 4<<20)
		for n := range newest {
			reader, err := s.Reader(n)
			if err != nil {
				t.Error(err)
				return
			}
			for again := true; again; {
				_, _ = reader.ReadAt(b, 0) // whatever is there, and what is behind it
				select {
				case <-stop:
					again = false
				default:
					again = len(newest) == 0
				}
			}
			_ = reader.Close()
		}
	})
	for n := range 120 {
		size, put := r.IntN(1<<r.IntN(17)), add
		if n%2 == 0 {
			size, put = size+segment.LargeBytesMin, addChunked
		}
		at := put(t, s, n, size)
		ok(t, s.Sync())
		ok(t, read(s, at, n, size))
		select {
		case newest <- at.Segment:
		default:
		}
	}
	close(stop)
	close(newest)
	readers.Wait()
	ok(t, s.Close())
}
