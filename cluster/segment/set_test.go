package segment_test

import (
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// Records of every size come back after a Close, in order, with label and
// length, and read as they were written.
func TestRoundTrip(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"disk": clustertest.NewDisk(1).Mount(), "host": vfs.OS()} {
		t.Run(name, func(t *testing.T) {
			if name == "host" {
				t.Chdir(t.TempDir())
			}
			d := strings.TrimPrefix(dir, "/")
			o := segment.Options{Store: store, SegmentBytes: 100 << 10, PoolFiles: 1}
			deliver := func(segment.Record) error { return errors.New("nothing was written") }
			s, err := segment.Open(fs, d, o, deliver)
			ok(t, err)
			sizes := []int{0, 1, 7, 8, 9, 4096, 8192, 8193, 70_000, 200_000, 3, 1 << 20, 20_000, 0, 0, 90_000}
			var places []segment.Place
			for n, size := range sizes {
				places = append(places, add(t, s, n, size))
				if n%3 == 0 {
					ok(t, s.Sync())
				}
			}
			ok(t, s.Sync())
			for n, at := range places {
				ok(t, read(s, at, n, sizes[n]))
			}
			ok(t, s.Close())
			ok(t, s.Close())
			if _, err := s.Append(kindThing, nil, segment.NewPayload()); !errors.Is(err, segment.ErrClosed) {
				t.Errorf("append to a closed set: %v", err)
			}

			n := 0
			s, err = segment.Open(fs, d, o, func(r segment.Record) error {
				if number(r.Label) != n || r.Place != places[n] || r.Length != int64(sizes[n]) || r.Kind != kindThing || r.Damaged {
					t.Errorf("record %d is delivered as %+v", n, r)
				}
				payload, err := r.Payload()
				if err != nil || string(payload) != string(octets(n, sizes[n])) {
					t.Errorf("payload of record %d: %d octets, %v", n, len(payload), err)
				}
				n++
				return nil
			})
			ok(t, err)
			if n != len(sizes) {
				t.Fatalf("%d of %d records", n, len(sizes))
			}
			if st := s.Stats(); st.Damage != 0 || st.Torn != 0 || st.Segments < 4 {
				t.Errorf("%+v", st)
			}
			for n, at := range places {
				ok(t, read(s, at, n, sizes[n]))
			}
			ok(t, s.Close())
		})
	}
}

// A restart reads the heads and the indexes of sealed segments, and no record:
// the octets read do not grow with what is stored.
func TestOpenReadsOnlyIndexes(t *testing.T) {
	disk := clustertest.NewDisk(1)
	o := segment.Options{SegmentBytes: 1 << 20}
	s, _ := open(t, disk.Mount(), o)
	for n := range 64 {
		add(t, s, n, 64<<10)
	}
	ok(t, s.Close())
	disk.Trace(true)
	s, d := open(t, disk.Mount(), o)
	var octets, reads int
	for _, e := range disk.Trace(false) {
		if e.Op == clustertest.OpRead {
			octets += e.Bytes
			reads++
		}
	}
	segments := s.Stats().Segments
	ok(t, s.Close())
	if len(d.records) != 64 || segments < 4 {
		t.Fatalf("%d records in %d segments", len(d.records), segments)
	}
	if reads > segments*3 || octets > segments*(2*4096+32<<10) {
		t.Errorf("%d reads of %d octets for %d segments", reads, octets, segments)
	}
}

// What a set writes for one batch is one write and one sync, however many
// records there are, and once in a while room is set aside.
func TestBatchIsOneWriteAndOneSync(t *testing.T) {
	disk := clustertest.NewDisk(1)
	s, _ := open(t, disk.Mount(), segment.Options{})
	add(t, s, 0, 10)
	ok(t, s.Sync())
	disk.Trace(true)
	for n := range 60 {
		add(t, s, 1+n, 20_000) // two pieces of more than copyBytesMax each
	}
	ok(t, s.Sync())
	ok(t, s.Sync())
	var ops []clustertest.Op
	for _, e := range disk.Trace(false) {
		ops = append(ops, e.Op)
	}
	if !slices.Equal(ops, []clustertest.Op{clustertest.OpTruncate, clustertest.OpWrite, clustertest.OpSync}) {
		t.Errorf("%v", ops)
	}
	ok(t, s.Close())
}

// The first failed write, sync or change of a name latches: nothing is written
// any more, and everything says why.
func TestLatch(t *testing.T) {
	for _, op := range []clustertest.Op{clustertest.OpWrite, clustertest.OpSync, clustertest.OpSyncDir, clustertest.OpRename, clustertest.OpRemove, clustertest.OpCreate} {
		t.Run(op.String(), func(t *testing.T) {
			disk := clustertest.NewDisk(1)
			s, _ := open(t, disk.Mount(), segment.Options{SegmentBytes: 20 << 10})
			at := add(t, s, 0, 10_000)
			ok(t, s.Sync())
			add(t, s, 1, 10_000)
			ok(t, s.Sync())
			add(t, s, 2, 2000)
			disk.Inject(clustertest.Fault{Op: op, Err: syscall.EIO})
			err := s.Sync()
			if err == nil {
				err = s.Free(at.Segment)
			}
			if err == nil {
				_, err = s.Append(kindThing, label(3), segment.NewPayload(octets(3, 10_000)))
			}
			if !errors.Is(err, syscall.EIO) || !errors.Is(s.Err(), syscall.EIO) {
				t.Fatalf("%v, latched %v", err, s.Err())
			}
			before := disk.Count(clustertest.OpAny)
			_, err = s.Append(kindThing, label(4), segment.NewPayload())
			for what, err := range map[string]error{"append": err, "sync": s.Sync(), "roll": s.Roll(), "free": s.Free(at.Segment)} {
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if s.Prewrite() {
				t.Error("prewrites")
			}
			if err := s.Close(); !errors.Is(err, syscall.EIO) {
				t.Errorf("close: %v", err)
			}
			if n := disk.Count(clustertest.OpAny) - before; n != 0 {
				t.Errorf("%d changes after the failure", n)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	disk := clustertest.NewDisk(1)
	fs := disk.Mount()
	s, _ := open(t, fs, segment.Options{})
	if _, _, err := openSet(fs, segment.Options{}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second one: %v", err)
	}
	for what, kind := range map[string]segment.Kind{"no kind": 0, "a kind of ours": segment.KindMax + 1} {
		if _, err := s.Append(kind, nil, segment.NewPayload()); !errors.Is(err, segment.ErrTooLarge) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Append(1, make([]byte, segment.LabelBytesMax+1), segment.NewPayload()); !errors.Is(err, segment.ErrTooLarge) {
		t.Errorf("long label: %v", err)
	}
	at := add(t, s, 0, 1)
	if err := s.Err(); err != nil {
		t.Errorf("what is refused latches: %v", err)
	}
	ok(t, s.Close())
	disk.Kill()
	if _, _, err := openSet(disk.Mount(), segment.Options{Store: "other"}); !errors.Is(err, segment.ErrFormat) {
		t.Errorf("another store's directory: %v", err)
	}
	// A later version.
	for _, page := range []int64{0, 4096} {
		disk.Damage(filepath.Join(dir, "00000001.seg"), page+11, 2^3)
	}
	s, _ = open(t, disk.Mount(), segment.Options{})
	if st := s.Stats(); st.Damage == 0 {
		t.Error("a head with a wrong checksum passes")
	}
	if err := s.Free(at.Segment); err == nil {
		t.Error("a lost segment was freed")
	}
}

// deliver's error ends Open, and the directory is free again.
func TestDeliverFails(t *testing.T) {
	disk := clustertest.NewDisk(1)
	fs := disk.Mount()
	s, _ := open(t, fs, segment.Options{})
	add(t, s, 0, 1)
	ok(t, s.Close())
	if _, err := segment.Open(fs, dir, segment.Options{Store: store}, func(segment.Record) error { return io.ErrNoProgress }); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%v", err)
	}
	s, _ = open(t, fs, segment.Options{})
	ok(t, s.Close())
}
