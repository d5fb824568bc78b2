package segment_test

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
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
// the gap record lies over it. The crash points alone cannot find this out, since
// there an index is lost only where the workload loses it (see model.rot).
func TestTornRecordStaysCovered(t *testing.T) {
	const header = 32
	for _, torn := range []struct {
		what   string
		offset int64
	}{{"header", 5}, {"payload", header + 8 + 500}} {
		for _, lost := range []string{"nothing", "index", "seals"} {
			t.Run(torn.what+" torn, "+lost+" lost", func(t *testing.T) {
				disk := clustertest.NewDisk(1)
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

				s, d := open(t, disk.Mount(), o)
				if st := s.Stats(); st.Torn != 1 || st.Damage != 0 || !slices.Equal(d.order, []int{0, 1, 3}) {
					t.Fatalf("%v: %+v", d.order, st)
				}
				add(t, s, 4, 10) // in the next segment: the first is not the last any more
				ok(t, s.Close())

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
