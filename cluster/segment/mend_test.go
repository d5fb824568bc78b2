package segment_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
)

// fileOf returns the name of a segment's file.
func fileOf(n segment.Number) string { return filepath.Join(dir, fmt.Sprintf("%08d.seg", n)) }

// indexAt returns where the index begins in a file that is sealed, as its seal
// says: DESIGN.md draws it.
func indexAt(file []byte) int64 { return int64(binary.BigEndian.Uint64(file[512+24:])) }

// A record that a power failure tore in the middle of a batch counts for nothing,
// also when the index or the seals are lost later and only the headers are read:
// the gap record lies over it. The crash points come to this only where their
// workload loses an index, see model.rot.
func TestTornRecordStaysCovered(t *testing.T) {
	const header = 32
	for _, torn := range []struct {
		what   string
		offset int64
	}{{"header", 5}, {"payload", header + 8 + 500}} {
		for seed, lost := range []string{"nothing", "index", "seals", "index behind a failed sync", "index behind a failed sync", "index behind a failed sync"} {
			t.Run(torn.what+" torn, "+lost+" lost", func(t *testing.T) {
				disk := clustertest.NewDisk(uint64(seed))
				o := segment.Options{SegmentBytes: 1 << 20}
				s, _ := open(t, disk.Mount(), o)
				add(t, s, 0, 100)
				ok(t, s.Sync())
				add(t, s, 1, 3000)
				victim := add(t, s, 2, 3000)
				add(t, s, 3, 3000)
				ok(t, s.Sync())
				disk.Kill()
				_ = s.Close()
				disk.Damage(fileOf(1), victim.Offset()+torn.offset, 1)

				lost, failed := strings.CutSuffix(lost, " behind a failed sync")
				if failed {
					// The gap reads well from now on, and is perhaps not on the disk.
					disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Err: syscall.EIO})
					if _, _, err := openSet(disk.Mount(), o); !errors.Is(err, syscall.EIO) {
						t.Fatalf("open: %v", err)
					}
				}
				s, d := open(t, disk.Mount(), o)
				if st := s.Stats(); st.Torn != 1 && !failed || st.Damage != 0 || !slices.Equal(d.order, []int{0, 1, 3}) {
					t.Fatalf("%v: %+v", d.order, st)
				}
				add(t, s, 4, 10) // in the next segment: the first is not the last any more
				ok(t, s.Close())
				disk.Crash()

				damage := 1
				switch lost {
				case "nothing":
					damage = 0
				case "index":
					b, err := disk.ReadFile(fileOf(1))
					ok(t, err)
					disk.Damage(fileOf(1), indexAt(b)+header, 1)
				case "seals":
					disk.Damage(fileOf(1), 512+30, 1)
					disk.Damage(fileOf(1), 4096+512+30, 1)
				}
				s, d = open(t, disk.Mount(), o)
				if st := s.Stats(); st.Damage != damage || st.Torn != 0 || !slices.Equal(d.order, []int{0, 1, 3, 4}) {
					t.Errorf("delivered %v: %+v", d.order, st)
				}
				for n, r := range d.records {
					ok(t, read(s, r.Place, n, int(r.Length)))
				}
				r, err := s.Reader(1)
				ok(t, err)
				var listed []int
				ok(t, r.Records(func(r segment.Record) error { listed = append(listed, number(r.Label)); return nil }))
				if !slices.Equal(listed, []int{0, 1, 3}) {
					t.Errorf("listed: %v", listed)
				}
				ok(t, r.Close())
				ok(t, s.Close())
			})
		}
	}
}

// A power failure while tears are covered, which lets the gap over one of them get
// to the disk and the other not, leaves tears: a gap attests no more than was
// attested before.
func TestCrashWhileTearsAreCovered(t *testing.T) {
	half := 0
	for seed := range uint64(40) {
		disk := clustertest.NewDisk(seed)
		o := segment.Options{SegmentBytes: 1 << 20}
		s, _ := open(t, disk.Mount(), o)
		add(t, s, 0, 100)
		ok(t, s.Sync())
		var places []segment.Place
		for n := range 5 {
			places = append(places, add(t, s, 1+n, 3000))
		}
		ok(t, s.Sync())
		disk.Kill()
		_ = s.Close()
		for _, n := range []int{2, 4} {
			disk.Damage(fileOf(1), places[n-1].Offset()+1000, 1)
		}
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Crash: true})
		if _, _, err := openSet(disk.Mount(), o); !errors.Is(err, clustertest.ErrKilled) {
			t.Fatalf("open: %v", err)
		}
		disk.Crash()
		s, d := open(t, disk.Mount(), o)
		st := s.Stats()
		if st.Damage != 0 || !slices.Equal(d.order, []int{0, 1, 3, 5}) {
			t.Errorf("seed %d: delivered %v: %+v", seed, d.order, st)
		}
		if st.Torn == 1 {
			half++
		}
		ok(t, s.Close())
	}
	if half == 0 {
		t.Error("the power never failed between the gaps: nothing is tested")
	}
}
