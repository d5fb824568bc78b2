package spool_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The directories in testdata were written by the version whose format they are
// named for. Every later version must open them. The one of today is written
// anew only when the format of today changes before anybody has it:
//
//	go test ./cluster/spool -run TestFormat2 -write-fixtures
var writeFixtures = flag.Bool("write-fixtures", false, "write testdata/format2")

// fixtureOptions are small segments, so that there are several.
var fixtureOptions = spool.Options{SegmentBytes: 18 * mail.KiB, PoolFiles: 1}

// A fixture says what is in a directory: bodies by number, and their sizes.
type fixture struct {
	held map[int]int
	gone map[int]int
}

// Both formats have the same bodies: 3 and 5 were deleted, 1 was deleted and put
// again. In the directory of a process that was killed, 8 is half written.
var fixtures = map[string]fixture{
	"closed": {held: map[int]int{0: 0, 1: 700, 2: 2000, 4: 1200, 6: 6000, 7: 40, 8: 1000}, gone: map[int]int{3: 3500, 5: 900}},
	"killed": {held: map[int]int{0: 0, 1: 700, 2: 2000, 4: 1200, 6: 6000, 7: 40}, gone: map[int]int{3: 3500, 5: 900, 8: 1000}},
}

// restore puts a directory of testdata on a disk, durably.
func restore(t *testing.T, disk *clustertest.Disk, from string) {
	t.Helper()
	m := disk.Mount()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(m.MkdirAll(dir))
	names, err := filepath.Glob(filepath.Join("testdata", from, "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		ok(err)
		f, err := m.Create(filepath.Join(dir, filepath.Base(name)))
		ok(err)
		_, err = f.WriteAt(b, 0)
		ok(errors.Join(err, f.Sync(), f.Close()))
	}
	ok(m.SyncDir(dir))
}

func (f fixture) check(t *testing.T, s *spool.Spool) {
	t.Helper()
	for n, size := range f.held {
		ref, _ := body(n, size)
		if err := read(s, ref, n); err != nil || !s.Held(ref) {
			t.Fatalf("body %d: %v", n, err)
		}
	}
	for n, size := range f.gone {
		if ref, _ := body(n, size); s.Held(ref) {
			t.Fatalf("body %d is held", n)
		}
	}
	if st := s.Stats(); st.Bodies != len(f.held) || st.Damage+st.Bad != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestFormat2(t *testing.T) {
	if *writeFixtures {
		writeFormat2(t)
	}
	for name, f := range fixtures {
		disk := clustertest.NewDisk(1)
		restore(t, disk, filepath.Join("format2", name))
		for range 2 {
			s := open(t, disk.Mount(), fixtureOptions)
			f.check(t, s)
			_ = s.Close()
		}
	}
}

// writeFormat2 writes the fixtures of today: with indexes, tombstones, a file of
// the pool that was a segment before, and a torn tail.
func writeFormat2(t *testing.T) {
	for name := range fixtures {
		to := filepath.Join("testdata", "format2", name)
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		o := fixtureOptions
		o.Random = rand.NewChaCha8([32]byte{9})
		s, err := spool.Open(vfs.OS(), to, o)
		if err != nil {
			t.Fatal(err)
		}
		first := put(t, s, 20, 8000)
		put(t, s, 0, 0)
		remove(t, s, first)
		refs := map[int]mail.BodyRef{}
		for n, size := range []int{0, 700, 2000, 3500, 1200, 900, 6000, 40} {
			refs[n] = put(t, s, n, size)
		}
		remove(t, s, refs[1], refs[3])
		put(t, s, 1, 700)
		remove(t, s, refs[5])
		large := put(t, s, 21, 17<<10)
		remove(t, s, large, put(t, s, 22, 17<<10)) // the segment of 21 goes to the pool
		put(t, s, 8, 1000)
		if name == "closed" {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			kill(t, s, to)
		}
		_ = os.Remove(filepath.Join(to, "LOCK"))
	}
}

// kill closes the spool and leaves its directory as it was before, but for body
// 8, which is half written.
func kill(t *testing.T, s *spool.Spool, d string) {
	before := map[string][]byte{}
	names, err := filepath.Glob(filepath.Join(d, "*"))
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for _, name := range names {
		if before[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".seg") {
			last = name
		}
	}
	_ = s.Close()
	for name, b := range before {
		if name == last {
			b = b[:len(b)-500]
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory of the first format is taken over: what was held is held, what was
// deleted is not, and no file of that format is left.
func TestFormat1IsTakenOver(t *testing.T) {
	for name, f := range fixtures {
		disk := clustertest.NewDisk(1)
		restore(t, disk, filepath.Join("format1", name))
		for range 2 {
			disk.Trace(true)
			s := open(t, disk.Mount(), fixtureOptions)
			// Tombstones stand in later files than what they are about.
			removed := false
			for _, e := range disk.Trace(false) {
				if removed && e.Op != clustertest.OpSyncDir {
					t.Errorf("%s is done before the directory is synced after a removal", e.Op)
				}
				removed = e.Op == clustertest.OpRemove
			}
			f.check(t, s)
			disk.Crash()
			_ = s.Close()
		}
		for _, name := range disk.Names(dir) {
			if strings.HasSuffix(name, ".old") {
				t.Errorf("%s is left", name)
			}
			b, err := disk.ReadFile(filepath.Join(dir, name))
			if err != nil || strings.HasPrefix(string(b), "hfspool") {
				t.Errorf("%s is of the first format, %v", name, err)
			}
		}
	}
}

// The power may fail at any operation of it.
func TestFormat1TakeOverIsCrashSafe(t *testing.T) {
	for name, f := range fixtures {
		crashes := 0
		const fates = 8 // of what no sync covered, for each operation
		for i := range 1000 * fates {
			at := i / fates
			disk := clustertest.NewDisk(uint64(i))
			restore(t, disk, filepath.Join("format1", name))
			m := disk.Mount()
			lift := disk.Inject(clustertest.Fault{Skip: at, Crash: true})
			s, err := spool.Open(m, dir, fixtureOptions)
			lift()
			if err == nil {
				_ = s.Close()
				break // there are no more operations
			}
			if !errors.Is(err, clustertest.ErrKilled) {
				t.Fatal(err)
			}
			crashes++
			disk.Crash()
			s = open(t, disk.Mount(), fixtureOptions)
			f.check(t, s)
			_ = s.Close()
		}
		if crashes < 20*fates || crashes > 500*fates {
			t.Errorf("%s: %d operations", name, crashes)
		}
	}
}

// Damage in it takes what it hits, and is not carried over.
func TestFormat1Damage(t *testing.T) {
	const headBytes, recordHead = 4096, 96
	for what, offset := range map[string]int64{
		"the header of body 0": headBytes + 20, "body 1, which was deleted": headBytes + 2*recordHead + 10,
		"the octets of body 2": headBytes + 3*recordHead + 704 + 10, "one header": 17, "its twin": 2048 + 17,
	} {
		f := fixtures["closed"]
		disk := clustertest.NewDisk(1)
		restore(t, disk, "format1/closed")
		if !disk.Damage(dir+"/00000001.seg", offset, 1) {
			t.Fatal("nothing there")
		}
		s := open(t, disk.Mount(), fixtureOptions)
		for n, size := range f.held {
			ref, content := body(n, size)
			if n == 0 && what == "the header of body 0" || n == 2 && what == "the octets of body 2" {
				if s.Held(ref) {
					t.Errorf("%s: held", what)
				}
				if err := s.Put(ref, content); err != nil {
					t.Fatal(err)
				}
			}
			if err := read(s, ref, n); err != nil {
				t.Errorf("%s: body %d: %v", what, n, err)
			}
		}
		for n, size := range f.gone {
			if ref, _ := body(n, size); s.Held(ref) {
				t.Errorf("%s: body %d is held", what, n)
			}
		}
		_ = s.Close()
	}
	// Both headers: the file is left for whoever can read it.
	disk := clustertest.NewDisk(1)
	restore(t, disk, "format1/closed")
	disk.Damage(dir+"/00000002.seg", 17, 1)
	disk.Damage(dir+"/00000002.seg", 2048+17, 1)
	s := open(t, disk.Mount(), fixtureOptions)
	if st := s.Stats(); st.Damage != 1 || st.Bodies >= len(fixtures["closed"].held) || st.Bodies < 3 {
		t.Errorf("%+v", st)
	}
	_ = s.Close()
}
