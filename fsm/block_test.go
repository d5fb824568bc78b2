package fsm

import (
	"slices"
	"testing"
)

// TestSnapshotOfTheTail: what is sealed in the block that is being filled is
// neither overwritten by a State nor by a snapshot of it, whichever goes on.
func TestSnapshotOfTheTail(t *testing.T) {
	b := newBlocks()
	first, _ := b.add(1, sealed("one"))
	c := b.copy()
	inB, _ := b.add(2, sealed("two"))
	inC, _ := c.add(2, sealed("TWO"))
	for what, got := range map[string]sealed{"one": b.get(first), "two": b.get(inB), "TWO": c.get(inC)} {
		if string(got) != what {
			t.Errorf("%q, want %q", got, what)
		}
	}
	if got := c.get(first); string(got) != "one" {
		t.Errorf("%q in the copy", got)
	}
}

// TestBlocksStayDense: what is forgotten here and there does not keep the blocks
// in which it lay.
func TestBlocksStayDense(t *testing.T) {
	s := New()
	const messages = 20_000
	want := make(map[Index]sealed)
	octets := func(e Index) sealed { return slices.Repeat(sealed{byte(e)}, 100+int(e%100)) }
	for e := Index(1); e <= messages; e++ {
		m := newMessage(e, [16]byte{byte(e >> 16), byte(e >> 8), byte(e)}, 1)
		want[e] = octets(e)
		m.slot = s.seal(e, want[e])
		s.store(m)
	}
	forget := func(e Index) {
		m, _ := s.message(e)
		s.unstore(m)
		delete(want, e)
	}
	check := func(when string) {
		t.Helper()
		blocks, room := 0, 0
		for b := range s.sealed.full.all() {
			blocks++
			room += len(b.octets)
		}
		live := 0
		for e, octets := range want {
			m, ok := s.message(e)
			if got := s.sealed.get(m.slot); !ok || string(got) != string(octets) {
				t.Fatalf("%s: message %d has %d octets, want %d", when, e, len(got), len(octets))
			}
			live += len(octets)
		}
		if room > 2*live+2*blockBytes {
			t.Errorf("%s: %d octets in %d blocks, of which %d are live", when, room, blocks, live)
		}
	}
	check("full")
	snapshot := s.Snapshot()
	for e := Index(1); e <= messages; e++ {
		if e%7 != 0 {
			forget(e)
		}
	}
	check("one in seven left")
	for e := Index(1); e <= messages; e++ {
		m, _ := snapshot.message(e)
		if got := snapshot.sealed.get(m.slot); string(got) != string(octets(e)) {
			t.Fatalf("snapshot: message %d has %d octets", e, len(got))
		}
	}
	for e := Index(messages + 1); e <= 2*messages; e++ { // most are forgotten in the tail
		m := newMessage(e, [16]byte{byte(e >> 16), byte(e >> 8), byte(e)}, 1)
		want[e] = octets(e)
		m.slot = s.seal(e, want[e])
		s.store(m)
		if e%50 != 0 {
			forget(e)
		}
	}
	check("one in fifty left at once")
	for e := range want {
		forget(e)
	}
	check("empty")
	if n := s.sealed.full.len(); n > 0 {
		t.Errorf("%d blocks, and no message", n)
	}
}

// TestLongSealed: a record longer than a block has one of its own.
func TestLongSealed(t *testing.T) {
	b := newBlocks()
	var slots []slot
	lengths := []int{10, blockBytes - 20, blockBytes, 2 * blockBytes, 5, 3 * blockBytes, blockBytes}
	for i, n := range lengths {
		at, _ := b.add(Index(i+1), slices.Repeat(sealed{byte(i)}, n))
		slots = append(slots, at)
	}
	for i, n := range lengths {
		if got := b.get(slots[i]); len(got) != n || got[0] != byte(i) || got[n-1] != byte(i) {
			t.Errorf("%d octets, want %d", len(got), n)
		}
	}
}
