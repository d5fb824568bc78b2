package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The format, as DESIGN.md draws it; the numbers stand here again so that a
// change of them is noticed.
const (
	headBytes   = 8192
	recordHead  = 32 + 48 // with the label
	victimBytes = 3001
	victimPad   = 7
	victimAt    = headBytes + recordHead + 1000 // body 0 has 1000 octets
)

// damageSpool makes a spool of three bodies in its first segment, the second of
// which is the victim, and some in later segments unless the first is to be the
// last. It is closed well, or dies.
func damageSpool(t *testing.T, last, clean bool) (*clustertest.Disk, spool.Options) {
	t.Helper()
	disk := clustertest.NewDisk(1)
	o := spool.Options{SegmentBytes: 24 * mail.KiB, Random: rand.NewChaCha8([32]byte{1})}
	s := open(t, disk.Mount(), o)
	for n, size := range []int{1000, victimBytes, 2000} {
		put(t, s, n, size)
	}
	if !last {
		put(t, s, 3, 16<<10)
		put(t, s, 4, 16<<10)
	}
	if !clean {
		disk.Kill()
	}
	_ = s.Close()
	return disk, o
}

// A flipped bit, in any field of a record, takes that record and no other; what
// is damaged is never served, and a Put heals it. Where the segment is sealed the
// index has what the header says, and a bit of the header takes nothing.
func TestFlippedBits(t *testing.T) {
	fields := map[string][2]int64{ // offset and length
		"mark":         {0, 8},
		"kind":         {8, 2},
		"label length": {10, 2},
		"length":       {12, 4},
		"payload crc":  {16, 4},
		"offset":       {20, 4},
		"attested":     {24, 4},
		"header crc":   {28, 4},
		"queue id":     {32, 16},
		"digest":       {48, 32},
		"first octet":  {recordHead, 1},
		"an octet":     {recordHead + 1500, 1},
		"last octet":   {recordHead + victimBytes - 1, 1},
		"padding":      {recordHead + victimBytes, victimPad},
	}
	for name, field := range fields {
		for _, last := range []bool{false, true} {
			for _, clean := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/last=%v/clean=%v", name, last, clean), func(t *testing.T) {
					for i := range field[1] {
						flipped(t, victimAt+field[0]+i, 1<<(i%8), last, clean,
							name == "padding" || field[0] < recordHead && (clean || !last))
					}
				})
			}
		}
	}
}

func flipped(t *testing.T, offset int64, mask byte, last, clean, harmless bool) {
	t.Helper()
	disk, o := damageSpool(t, last, clean)
	if !disk.Damage(dir+"/00000001.seg", offset, mask) {
		t.Fatal("nothing there to damage")
	}
	s := open(t, disk.Mount(), o)
	others := map[int]int{0: 1000, 2: 2000}
	if !last {
		others[3], others[4] = 16<<10, 16<<10
	}
	check := func(s *spool.Spool) {
		t.Helper()
		for n, size := range others {
			ref, _ := body(n, size)
			if err := read(s, ref, n); err != nil || !s.Held(ref) {
				t.Errorf("body %d, which is not damaged: %v", n, err)
			}
		}
	}
	check(s)
	victim, content := body(1, victimBytes)
	if s.Held(victim) {
		err := s.Verify(victim)
		switch {
		case harmless && err == nil:
			return
		case !errors.Is(err, spool.ErrCorrupt):
			t.Fatalf("verify: %v", err)
		}
		if st := s.Stats(); st.Bad != 1 {
			t.Errorf("not counted: %+v", st)
		}
	} else if st := s.Stats(); st.Damage != 1 || st.Torn != 0 {
		// What is behind it attests that it was synced: it is no torn tail.
		t.Errorf("not counted as damage: %+v", st)
	}
	if s.Held(victim) {
		t.Error("still held after it was found damaged")
	}
	if err := read(s, victim, 1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if len(s.Bodies()) != len(others) || s.Stats().Bodies != len(others) {
		t.Errorf("listed: %v", s.Bodies())
	}
	if err := s.Put(victim, content); err != nil {
		t.Fatalf("put anew: %v", err)
	}
	for range 2 {
		if err := read(s, victim, 1); err != nil {
			t.Errorf("put anew, and now: %v", err)
		}
		check(s)
		_ = s.Close()
		s = open(t, disk.Mount(), o)
	}
	// When it is deleted, neither copy comes back.
	remove(t, s, victim)
	disk.Crash()
	_ = s.Close()
	s = open(t, disk.Mount(), o)
	if s.Held(victim) {
		t.Error("a damaged body came back when its copy was deleted")
	}
	check(s)
	_ = s.Close()
}

// What is torn at the end is cut once, and passes for damage neither then nor
// later.
func TestTornTailIsCut(t *testing.T) {
	disk, _ := damageSpool(t, true, false)
	whole, err := disk.ReadFile(dir + "/00000001.seg")
	if err != nil {
		t.Fatal(err)
	}
	start := victimAt + recordHead + victimBytes + victimPad // of the last record
	whole = whole[:start+recordHead+2000]                    // what is written ahead of the next one says nothing
	last, _ := body(2, 2000)
	for cut := start; cut <= len(whole); cut += 1 + (len(whole)-start)/60 {
		for _, zeros := range []bool{false, true} {
			disk, o := damageSpool(t, true, false)
			truncate(t, disk, int64(cut))
			if zeros { // the length got to the disk and the octets did not
				extend(t, disk, int64(len(whole)))
			}
			s := open(t, disk.Mount(), o)
			st := s.Stats()
			if cut == len(whole) {
				if st.Bodies != 3 || st.Torn != 0 {
					t.Fatalf("nothing is cut: %+v", st)
				}
				continue
			}
			torn := 1
			if cut < start+8 { // nothing there that says that a record was begun
				torn = 0
			}
			if st.Bodies != 2 || st.Torn != torn || st.Damage != 0 || s.Held(last) {
				t.Fatalf("cut at %d, zeros %v: %+v", cut, zeros, st)
			}
			if b, err := disk.ReadFile(dir + "/00000001.seg"); err != nil || !bytes.Equal(b[headBytes:start], whole[headBytes:start]) {
				t.Fatalf("cut at %d: what was whole has changed (%v)", cut, err)
			}
			put(t, s, 2, 2000)
			disk.Kill()
			_ = s.Close()
			s = open(t, disk.Mount(), o)
			if st := s.Stats(); st.Bodies != 3 || st.Torn+st.Damage+st.Bad != 0 {
				t.Fatalf("cut at %d, zeros %v, opened again: %+v", cut, zeros, st)
			}
			_ = s.Close()
		}
	}
}

// A record that is torn while those behind it in the same batch are whole must
// not count as a body later, when its segment is no longer the last and only
// its header is looked at.
func TestTornRecordAmongWholeOnes(t *testing.T) {
	for _, offset := range []int64{victimAt + 3, victimAt + recordHead + 1500} {
		synctest.Test(t, func(t *testing.T) { tornAmongWhole(t, offset) })
	}
}

func tornAmongWhole(t *testing.T, offset int64) {
	disk := clustertest.NewDisk(1)
	o := spool.Options{SegmentBytes: 24 * mail.KiB}
	s := open(t, disk.Mount(), o)
	batch(t, disk, s, 1000, victimBytes, 2000)
	disk.Kill()
	_ = s.Close()
	disk.Damage(dir+"/00000001.seg", offset, 0x10)
	victim, _ := body(1, victimBytes)
	for life := range 3 {
		s := open(t, disk.Mount(), o)
		torn := 0
		if life == 0 {
			torn = 1
		}
		if st := s.Stats(); s.Held(victim) || st.Bodies != 2+life || st.Torn != torn || st.Damage != 0 {
			t.Fatalf("life %d: held %v, %+v", life, s.Held(victim), st)
		}
		put(t, s, 10+life, 100)
		disk.Crash()
		_ = s.Close()
	}
}

// After a failed sync the kernel may call pages clean that are not on the disk:
// they read well until the power goes. A restart must not take them for durable.
func TestCleanPagesThatNeverReachedTheDisk(t *testing.T) {
	for seed := range uint64(50) {
		disk := clustertest.NewDisk(seed)
		s := open(t, disk.Mount(), spool.Options{})
		put(t, s, 0, 100)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSync, Err: syscall.EIO})
		ref, content := body(1, 3000)
		if err := s.Put(ref, content); !errors.Is(err, syscall.EIO) {
			t.Fatalf("put: %v", err)
		}
		disk.Kill()
		_ = s.Close()
		s = open(t, disk.Mount(), spool.Options{})
		if !s.Held(ref) {
			t.Fatalf("seed %d: the page cache has it, and it is not held; the test is about the case where it is", seed)
		}
		disk.Crash()
		_ = s.Close()
		s = open(t, disk.Mount(), spool.Options{})
		if err := read(s, ref, 1); err != nil {
			t.Fatalf("seed %d: it was held, and after a power failure: %v", seed, err)
		}
		_ = s.Close()
	}
}

func TestSegmentHeaderHasATwin(t *testing.T) {
	for _, at := range [][]int64{{3}, {4096 + 20}, {3, 4096 + 20}} {
		disk, o := damageSpool(t, false, true)
		for _, offset := range at {
			disk.Damage(dir+"/00000001.seg", offset, 1)
		}
		s := open(t, disk.Mount(), o)
		bodies, damage := 5, 1
		if len(at) == 2 {
			bodies = 2
		}
		if st := s.Stats(); st.Bodies != bodies || st.Damage != damage {
			t.Errorf("damage at %v: %+v", at, st)
		}
		// The unreadable file is kept for whoever can read it, and its number is
		// not given to another.
		put(t, s, 9, 100)
		if !slices.Contains(disk.Names(dir), "00000001.seg") {
			t.Errorf("damage at %v: the file is gone", at)
		}
		_ = s.Close()
	}
}

// The last octets of a damaged body are never handed out, not even to a reader
// that asks for exactly as many as there are and does not look further.
func TestDamagedBodyIsNeverReadWhole(t *testing.T) {
	for _, size := range []int64{1, 100, victimBytes, victimBytes * 2} {
		disk, o := damageSpool(t, false, true)
		s := open(t, disk.Mount(), o)
		disk.Damage(dir+"/00000001.seg", victimAt+recordHead+5, 1)
		victim, _ := body(1, victimBytes)
		r, err := s.Open(victim)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		buf := make([]byte, size)
		for err == nil {
			var n int
			n, err = r.Read(buf)
			got += n
		}
		if !errors.Is(err, spool.ErrCorrupt) || got >= victimBytes {
			t.Errorf("reads of %d: %d octets, then %v", size, got, err)
		}
		_ = r.Close()
		if s.Held(victim) {
			t.Error("still held")
		}
	}
}

// An error of the disk while a body is read makes it a bad one, which a Put
// heals; it does not end the spool.
func TestReadError(t *testing.T) {
	disk, o := damageSpool(t, false, true)
	s := open(t, disk.Mount(), o)
	victim, content := body(1, victimBytes)
	lift := disk.Inject(clustertest.Fault{Op: clustertest.OpRead, Err: syscall.EIO, Forever: true, Name: "00000001.seg"})
	if err := s.Verify(victim); !errors.Is(err, spool.ErrCorrupt) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("verify: %v", err)
	}
	if s.Held(victim) || s.Err() != nil {
		t.Errorf("held %v, failed %v", s.Held(victim), s.Err())
	}
	if _, err := s.Open(victim); !errors.Is(err, spool.ErrNotHeld) || !errors.Is(err, spool.ErrCorrupt) {
		t.Errorf("open again: %v", err)
	}
	arrived := s.Arrived(victim)
	if err := s.Put(victim, content); err != nil {
		t.Fatal(err)
	}
	<-arrived
	if err := read(s, victim, 1); err != nil {
		t.Error(err)
	}
	lift()
}

// When a damaged body was put anew, its Delete means both copies, though the
// first tombstone is lost.
func TestDamagedCopyDoesNotComeBack(t *testing.T) {
	for _, lost := range []bool{false, true} {
		disk, o := damageSpool(t, true, true)
		s := open(t, disk.Mount(), o)
		put(t, s, 3, 100)
		disk.Damage(dir+"/00000001.seg", victimAt+recordHead+5, 1)
		victim, content := body(1, victimBytes)
		if err := s.Verify(victim); !errors.Is(err, spool.ErrCorrupt) {
			t.Fatalf("verify: %v", err)
		}
		if err := s.Put(victim, content); err != nil {
			t.Fatal(err)
		}
		if lost {
			disk.Crash()
			_ = s.Close()
			// The second segment has body 3, the tombstone, the new copy.
			disk.Damage(dir+"/00000002.seg", headBytes+recordHead+104+20, 1)
			s = open(t, disk.Mount(), o)
			if st := s.Stats(); st.Bodies != 4 || st.Torn != 1 { // torn, for all that anybody can tell
				t.Fatalf("%+v", st)
			}
			if err := read(s, victim, 1); err != nil {
				t.Fatalf("the later copy does not count: %v", err)
			}
		}
		// With body 3 the new copy's segment goes, and nothing is left there that
		// could hide the old copy.
		third, _ := body(3, 100)
		remove(t, s, victim, third)
		for range 2 {
			disk.Crash()
			_ = s.Close()
			s = open(t, disk.Mount(), o)
			if st := s.Stats(); st.Bodies != 2 || s.Held(victim) {
				t.Errorf("tombstone lost %v: %+v, held %v", lost, st, s.Held(victim))
			}
		}
	}
}

// Where a crash left two records of one body, and lost the tombstone of the first,
// that is written with the next batch. Without it the body would come back once
// it is deleted: the tombstone of the second record goes with that record's
// segment.
func TestOwedTombstoneIsWritten(t *testing.T) {
	disk := clustertest.NewDisk(1)
	set, err := segment.Open(disk.Mount(), dir, segment.Options{Store: "spool"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	record := func(n, size int) mail.BodyRef {
		t.Helper()
		ref, content := body(n, size)
		label := slices.Concat(ref.ID[:], ref.Digest[:])
		if _, err := set.Append(1, label, segment.NewPayload(content.Chunks()...)); err != nil {
			t.Fatal(err)
		}
		return ref
	}
	neighbour, twice := record(0, 100), record(1, 3000)
	if err := set.Roll(); err != nil {
		t.Fatal(err)
	}
	record(1, 3000)
	if err := set.Close(); err != nil {
		t.Fatal(err)
	}

	s := open(t, disk.Mount(), spool.Options{})
	before := s.Stats()
	if before.Bodies != 2 || !s.Held(twice) || !s.Held(neighbour) {
		t.Fatalf("%+v", before)
	}
	third := put(t, s, 2, 100) // the next batch
	if st := s.Stats(); st.LiveBytes >= before.LiveBytes {
		t.Errorf("the first record is counted as needed: %d octets, %d before", st.LiveBytes, before.LiveBytes)
	}
	remove(t, s, twice)
	if slices.Contains(disk.Names(dir), "00000002.seg") || !firstSegment(disk) {
		t.Fatalf("the test is about a second record whose segment goes: %v", disk.Names(dir))
	}
	for range 2 {
		disk.Crash()
		_ = s.Close()
		s = open(t, disk.Mount(), spool.Options{})
		if st := s.Stats(); s.Held(twice) || !s.Held(neighbour) || !s.Held(third) {
			t.Errorf("the deleted body is back: %v; %+v", s.Held(twice), st)
		}
	}
}

// Nobody can send a body that passes for a record when the reader of a damaged
// segment looks for the next one: he would have to know the segment's mark. The
// control is a forger who does know it.
func TestForgedRecordInABody(t *testing.T) {
	for mark, want := range map[byte]int{1: 1, 2: 0} {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{Random: rand.NewChaCha8([32]byte{1})})
		put(t, s, 0, 0)
		put(t, s, 1, 1000) // its record lies where the payload of a first record begins
		b, err := disk.ReadFile(dir + "/00000001.seg")
		if err != nil {
			t.Fatal(err)
		}
		carrier := mail.NewBody(b[headBytes+recordHead:])

		other := clustertest.NewDisk(2)
		s = open(t, other.Mount(), spool.Options{Random: rand.NewChaCha8([32]byte{mark})})
		if err := s.Put(carrier.Ref(queueID(7)), carrier); err != nil {
			t.Fatal(err)
		}
		other.Kill() // or the index would say what is there
		_ = s.Close()
		other.Damage(dir+"/00000001.seg", headBytes+40, 1) // the carrier's header
		s = open(t, other.Mount(), spool.Options{})
		if st := s.Stats(); st.Bodies != want {
			t.Errorf("mark %d: %d bodies inside a body are held, want %d", mark, st.Bodies, want)
		}
	}
}

// batch puts body 0, and then bodies 1 and 2 in one batch, which nothing behind
// it attests.
func batch(t *testing.T, disk *clustertest.Disk, s *spool.Spool, sizes ...int) {
	t.Helper()
	disk.Inject(clustertest.Fault{Op: clustertest.OpCreate, Delay: time.Second})
	var wg sync.WaitGroup
	for n, size := range sizes {
		wg.Go(func() { putLater(t, s, n, size) })
		synctest.Wait() // 0 is with the writer, 1 and 2 queue up behind it, in order
	}
	wg.Wait()
	if st := s.Stats(); st.Syncs != 2 {
		t.Fatalf("%d batches", st.Syncs)
	}
}

func truncate(t *testing.T, disk *clustertest.Disk, size int64) { resize(t, disk, size) }
func extend(t *testing.T, disk *clustertest.Disk, size int64)   { resize(t, disk, size) }

func resize(t *testing.T, disk *clustertest.Disk, size int64) {
	t.Helper()
	f, err := disk.Mount().OpenWrite(dir + "/00000001.seg")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
