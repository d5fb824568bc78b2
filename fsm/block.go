package fsm

import (
	"encoding/binary"
	"slices"
)

// blocks hold what never changes about the messages, sealed, many in one piece
// of memory: a million queued messages are a few thousand objects to the garbage
// collector, none of which it has to look into.
//
// Octets that are written never change: a snapshot shares them. Which block a
// message lies in differs between nodes, and nothing can be seen of it.
//
// A block is a row of records:
//
//	number  entry of the message
//	number  octets of the sealed
//	octets  sealed
//
// Invariant: live is the length of the records of messages that are known.
// Invariant: more than half of a full block is live. Of one that becomes sparser
// the live records are copied to the tail.
type blocks struct {
	full tree[block] // by number
	tail block       // that records are appended to
}

type block struct {
	number blockNumber
	octets []byte
	live   int
}

// A blockNumber is never given out twice by one State.
type blockNumber uint64

// A slot is where the record of a message lies: the number of the block, and
// how many octets of it come before.
type slot uint64

const (
	// blockBytes is the length of a block; a longer record has one of its own.
	blockBytes = 32 << 10
	// slotBits hold the offset: less than blockBytes.
	slotBits = 16
)

func slotAt(n blockNumber, offset int) slot { return slot(n)<<slotBits | slot(offset) }

func (p slot) block() blockNumber { return blockNumber(p >> slotBits) }
func (p slot) offset() int        { return int(p & (1<<slotBits - 1)) }

func newBlocks() blocks {
	return blocks{full: newTree(func(a, b block) bool { return a.number < b.number })}
}

// copy returns blocks that may be read, and written, while b goes on. Both go on
// from the same tail, so only one of them may use the room behind it.
func (b *blocks) copy() blocks {
	c := blocks{full: b.full.copy(), tail: b.tail}
	c.tail.octets = slices.Clip(c.tail.octets)
	return c
}

// add writes a record. If the tail is full and sparse, it returns that block, taken
// out: what is live in it must be added anew.
func (b *blocks) add(entry Index, s sealed) (at slot, sparse block) {
	var header [2 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(binary.AppendUvarint(header[:0], uint64(entry)), uint64(len(s)))
	if n := len(h) + len(s); len(b.tail.octets)+n > blockBytes || b.tail.octets == nil {
		if b.tail.sparse() {
			sparse = b.tail
		} else {
			b.full.set(b.tail)
		}
		b.tail = block{number: b.tail.number + 1, octets: make([]byte, 0, max(n, blockBytes))}
	}
	at = slotAt(b.tail.number, len(b.tail.octets))
	b.tail.octets = append(append(b.tail.octets, h...), s...)
	b.tail.live += len(h) + len(s)
	return at, sparse
}

func (b block) sparse() bool { return 2*b.live <= len(b.octets) }

// get returns what is sealed in a slot. It must not be changed.
func (b *blocks) get(p slot) sealed {
	_, s, _ := b.record(p)
	return s
}

// record reads the record in a slot, and returns its length.
func (b *blocks) record(p slot) (entry Index, s sealed, length int) {
	in := b.tail
	if p.block() != in.number {
		in, _ = b.full.get(block{number: p.block()})
	}
	return in.record(p.offset())
}

// live is the length of all records of messages that are known.
func (b *blocks) live() int {
	live := b.tail.live
	for full := range b.full.all() {
		live += full.live
	}
	return live
}

// record reads the record at an offset, and returns its length.
func (b block) record(offset int) (entry Index, s sealed, length int) {
	rest := b.octets[offset:]
	e, n := number(rest)
	size, k := number(rest[n:])
	n += k
	return Index(e), sealed(rest[n : n+int(size)]), n + int(size)
}

// release says that the message of a record is forgotten. If that makes its block
// sparse, it returns the block, as add does.
func (b *blocks) release(p slot) (sparse block) {
	_, _, n := b.record(p)
	if p.block() == b.tail.number {
		b.tail.live -= n
		return block{}
	}
	in, _ := b.full.get(block{number: p.block()})
	if in.live -= n; in.sparse() {
		b.full.remove(in)
		return in
	}
	b.full.set(in)
	return block{}
}

// seal keeps what never changes about a message that will be stored.
func (s *State) seal(entry Index, octets sealed) slot {
	at, sparse := s.sealed.add(entry, octets)
	s.move(sparse)
	return at
}

// unseal forgets what never changed about a message that is forgotten already.
// The slots of other messages in hand are not good any more.
func (s *State) unseal(p slot) { s.move(s.sealed.release(p)) }

// move adds the live records of a block anew, which was taken out.
func (s *State) move(sparse block) {
	for offset := 0; offset < len(sparse.octets) && sparse.live > 0; {
		entry, octets, n := sparse.record(offset)
		if m, ok := s.messages.get(stored{entry: entry}); ok && m.slot == slotAt(sparse.number, offset) {
			m.slot = s.seal(entry, octets)
			s.messages.set(m)
			sparse.live -= n
		}
		offset += n
	}
}
