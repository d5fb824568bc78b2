package consensus

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// oldStores are stores as version 0.1 made them: a log from 3 to 40 and values
// without checksums, all in raft.db.
const oldStores = "testdata/stores-0.1"

// valuesOfOldStores is what is in them.
var valuesOfOldStores = map[string][]byte{
	"CurrentTerm":          {0, 0, 0, 0, 0, 0, 0, 7},
	"LastVoteTerm":         {0, 0, 0, 0, 0, 0, 0, 7},
	"LastVoteCand":         []byte("n2/0102030405060708"),
	string(floorKey):       {0, 0, 0, 0, 0, 0, 0, 12},
	string(incarnationKey): []byte("0102030405060708"),
}

// copyOldStores returns a copy that may be written to.
func copyOldStores(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	content, err := os.ReadFile(filepath.Join(oldStores, logFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, logFile), content, fileMode); err != nil {
		t.Fatal(err)
	}
	return dir
}

// valuesIn returns what a raft.db says, as OpenStores would understand it.
func valuesIn(content []byte) (values map[string][]byte, old bool, err error) {
	f, err := readBoltFile(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return nil, false, err
	}
	r, old, err := f.stable()
	return r.values, old, err
}

// writtenStores returns a raft.db of ours after some writes.
func writtenStores(t *testing.T) (dir string, content []byte) {
	t.Helper()
	dir = t.TempDir()
	s, err := OpenBoltStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range valuesOfOldStores {
		if err := s.Stable.Set([]byte(key), value); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(filepath.Join(dir, logFile)); err != nil {
		t.Fatal(err)
	}
	return dir, content
}

// TestStableRecordFlippedBits: whatever bit of raft.db flips, either nothing of
// what it says changes, or it is refused. Bits that bbolt has no use for may
// flip.
func TestStableRecordFlippedBits(t *testing.T) {
	_, content := writtenStores(t)
	f, err := readBoltFile(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	refused, unharmed := 0, 0
	for bit := range len(content) * 8 {
		page := uint64(bit / 8 / int(f.meta.pageSize))
		if page > 1 && !f.seen[page] && bit%64 != 0 {
			continue // a free page: some of its bits are enough
		}
		content[bit/8] ^= 1 << (bit % 8)
		values, old, err := valuesIn(content)
		switch {
		case err != nil:
			refused++
		case old || !maps.EqualFunc(values, valuesOfOldStores, bytes.Equal):
			t.Fatalf("bit %d of byte %d: read as %q (old %v)", bit%8, bit/8, values, old)
		default:
			unharmed++
		}
		content[bit/8] ^= 1 << (bit % 8)
	}
	t.Logf("%d bits refused, %d without meaning", refused, unharmed)
	// The record, the two meta pages and what leads from them to it are about
	// 400 octets.
	if refused < 8*350 {
		t.Errorf("only %d bits matter", refused)
	}
}

// TestOpenStoresDamaged opens stores with damage that bbolt would panic over,
// and some that it would not notice.
func TestOpenStoresDamaged(t *testing.T) {
	zero := func(b []byte) { clear(b) }
	for _, test := range []struct {
		name   string
		damage func(content []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"one page", func(b []byte) []byte { return b[:4096] }},
		{"two pages", func(b []byte) []byte { return b[:8192] }},
		{"three pages", func(b []byte) []byte { return b[:12288] }},
		{"without its last page in use", func(b []byte) []byte {
			f, err := readBoltFile(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			return b[:(f.meta.pages-1)*uint64(f.meta.pageSize)]
		}},
		{"zeros", func(b []byte) []byte { zero(b); return b }},
		{"zeros behind the meta pages", func(b []byte) []byte { zero(b[8192:]); return b }},
		{"first meta page gone", func(b []byte) []byte { zero(b[:4096]); return b }},
		{"second meta page gone", func(b []byte) []byte { zero(b[4096:8192]); return b }},
		{"text", func(b []byte) []byte { return bytes.Repeat([]byte("mail "), len(b)/5) }},
		{"garbage", func(b []byte) []byte {
			random := rand.New(rand.NewPCG(1, 1))
			for i := range b[8192:] {
				b[8192+i] = byte(random.Uint32())
			}
			return b
		}},
		{"record altered", func(b []byte) []byte {
			// Wherever there is a copy of it: old ones lie in free pages.
			return bytes.ReplaceAll(b, []byte("n2/0102030405060708"), []byte("n1/0102030405060708"))
		}},
		{"record under another key", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("HoldfastStable"), []byte("HoldfastStaple"))
		}},
		{"bucket under another name", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("conf"), []byte("bonf"))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, content := writtenStores(t)
			if err := os.WriteFile(filepath.Join(dir, logFile), test.damage(content), fileMode); err != nil {
				t.Fatal(err)
			}
			s, err := OpenStores(dir)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "new incarnation") {
				t.Errorf("%v", err)
			}
			// Nothing is locked or open any more.
			if _, again := OpenStores(dir); again == nil || again.Error() != err.Error() {
				t.Errorf("again: %v", again)
			}
		})
	}
}

// TestOpenStoresFlippedBits opens stores for real, with bits flipped at random:
// what passes the reading is no harm to bbolt.
func TestOpenStoresFlippedBits(t *testing.T) {
	dir, content := writtenStores(t)
	random := rand.New(rand.NewPCG(1, 1))
	opened := 0
	for range 150 {
		// Around what is in use there is more to hit.
		at := random.IntN(len(content))
		if random.IntN(2) == 0 {
			at = at / 4096 * 4096
			at += random.IntN(512)
		}
		flipped := bytes.Clone(content)
		flipped[at] ^= 1 << random.IntN(8)
		if err := os.WriteFile(filepath.Join(dir, logFile), flipped, fileMode); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStores(dir)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", at, err)
			}
			continue
		}
		opened++
		for key, want := range valuesOfOldStores {
			if got, err := s.Stable.Get([]byte(key)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("byte %d: %s is %q, %v", at, key, got, err)
			}
		}
		if err := errors.Join(s.Stable.SetUint64(floorKey, 13), s.Close()); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	if opened == 0 || opened == 150 {
		t.Errorf("opened %d times of 150", opened)
	}
}

// TestOpenOldStores: stores of version 0.1 open, get their checksums, and are
// never taken for old ones again.
func TestOpenOldStores(t *testing.T) {
	dir := copyOldStores(t)
	for range 2 {
		s, err := OpenStores(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Incarnation(nil); got != "0102030405060708" || err != nil {
			t.Errorf("incarnation %q, %v", got, err)
		}
		if f, err := openFloor(s.Stable, newLatch()); err != nil || f.atStart != 12 {
			t.Errorf("floor %+v, %v", f, err)
		}
		for key, want := range valuesOfOldStores {
			if got, err := s.Stable.Get([]byte(key)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is %q, %v", key, got, err)
			}
		}
		first, err := s.Log.FirstIndex()
		last, err2 := s.Log.LastIndex()
		if first != 3 || last != 40 || err != nil || err2 != nil {
			t.Errorf("log from %d to %d: %v, %v", first, last, err, err2)
		}
		for index := first; index <= last; index++ {
			var l raft.Log
			if err := s.Log.GetLog(index, &l); err != nil || l.Index != index || l.Term != 1+index/10 {
				t.Errorf("entry %d: %+v, %v", index, l, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, logFile))
		if err != nil {
			t.Fatal(err)
		}
		values, old, err := valuesIn(content)
		delete(values, string(logIDKey))
		if old || err != nil || !maps.EqualFunc(values, valuesOfOldStores, bytes.Equal) {
			t.Errorf("old %v: %q, %v", old, values, err)
		}
	}
}

// TestOldStoresChanged: what is no value of the older version is not taken for
// one, and what an older version wrote beside our record is noticed.
func TestOldStoresChanged(t *testing.T) {
	change := func(t *testing.T, dir string, do func(*bbolt.Bucket) error) {
		t.Helper()
		db, err := bbolt.Open(filepath.Join(dir, logFile), fileMode, boltOptions())
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error { return do(tx.Bucket(confBucket)) })
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		do   func(*bbolt.Bucket) error
	}{
		{"a number of 7 octets", func(b *bbolt.Bucket) error { return b.Put([]byte("CurrentTerm"), make([]byte, 7)) }},
		{"a vote for nobody", func(b *bbolt.Bucket) error { return b.Put([]byte("LastVoteCand"), []byte("n2")) }},
		{"half an incarnation", func(b *bbolt.Bucket) error { return b.Put(incarnationKey, []byte("0102030405")) }},
		{"an unknown value", func(b *bbolt.Bucket) error { return b.Put([]byte("CurrentUerm"), make([]byte, 8)) }},
		{"all values gone", func(b *bbolt.Bucket) error {
			for key := range valuesOfOldStores {
				if err := b.Delete([]byte(key)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a record beside them", func(b *bbolt.Bucket) error {
			encoded, err := stableRecord{}.encode()
			return errors.Join(err, b.Put([]byte(recordKey), encoded))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := copyOldStores(t)
			change(t, dir, test.do)
			if s, err := OpenStores(dir); !errors.Is(err, ErrDamaged) {
				t.Errorf("%v", err)
				if err == nil {
					_ = s.Close()
				}
			}
		})
	}
}

// TestStoresAreFoundedWhole: a node that was killed while it made raft.db has
// none, and makes one at the next start.
func TestStoresAreFoundedWhole(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, logFile+draftSuffix), []byte("half of it"), fileMode); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"LOCK", "log", "raft.db", "snapshots"}) {
		t.Errorf("%q", names)
	}
}

// TestStableRecord encodes and decodes, and finds what is wrong.
func TestStableRecord(t *testing.T) {
	r := stableRecord{}
	for key, value := range valuesOfOldStores {
		r = r.with(key, value)
	}
	encoded, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeStableRecord(encoded)
	if err != nil || got.revision != 5 || !maps.EqualFunc(got.values, r.values, bytes.Equal) {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range encoded {
		if _, err := decodeStableRecord(encoded[:n]); err == nil {
			t.Errorf("decoded %d octets of %d", n, len(encoded))
		}
	}
	for _, impossible := range []stableRecord{
		r.with("", nil), r.with(strings.Repeat("k", 256), nil), r.with("k", make([]byte, 1<<16)), r.with("k", make([]byte, recordBytesMax)),
	} {
		if _, err := impossible.encode(); err == nil {
			t.Error("encoded what does not fit")
		}
	}
}

func FuzzBoltFile(f *testing.F) {
	content, err := os.ReadFile(filepath.Join(oldStores, logFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Fuzz(func(t *testing.T, content []byte) {
		_, _, _ = valuesIn(content) // returns, and does not panic
	})
}
