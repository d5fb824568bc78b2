package consensus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// A boltFile is a bbolt database, read here before bbolt reads it. bbolt has no
// checksums but those of its two meta pages, believes every page, and panics
// over what it then finds, at open even in a goroutine of its own, where nobody
// can catch it. What has passed here it can walk without harm.
//
// The layout, in the byte order of the host, in pages of meta.pageSize:
//
//	page    0   8  its number
//	        8   2  kind: 1 branch, 2 leaf, 4 meta, 16 list of free pages
//	        10  2  number of elements
//	        12  4  how many more pages it goes on over
//	        16     the elements, then keys and values
//	branch  0   4  where the key begins, from here
//	element 4   4  length of the key
//	        8   8  page of what is from this key on
//	leaf    0   4  1 for a bucket
//	element 4   4  where key and value begin, from here
//	        8   4  length of the key
//	        12  4  length of the value
//	bucket  0   8  its page; 0: the page follows here
//	        8   8  a number that nobody uses
//
// Pages 0 and 1 are the meta pages; they are written in turn, and the one with
// the greater transaction counts.
type boltFile struct {
	from io.ReaderAt
	size int64
	meta boltMeta
	seen map[uint64]bool // pages that have been walked

	values map[string][]byte // of the bucket conf
	logs   int               // entries in the bucket logs
}

const (
	boltMagic        = 0xED0CDAED
	boltVersion      = 2
	boltNoFreelist   = math.MaxUint64
	boltPageHead     = 16
	boltElement      = 16
	boltBucketHead   = 16
	boltMetaSummed   = 56 // octets before the checksum
	boltMetaBytes    = boltMetaSummed + 8
	boltPageBytesMin = 1 << 10
	boltPageBytesMax = 16 << 20
	boltDepthMax     = 32
	boltBranch       = 1
	boltLeaf         = 2
	boltFree         = 16
	boltLeafBucket   = 1
)

// A boltMeta is what a meta page says.
type boltMeta struct {
	pageSize    int64
	root        uint64
	freelist    uint64
	pages       uint64 // as many are, or were, in use
	transaction uint64
}

var order = binary.NativeEndian

// readBoltFile reads and checks a whole database.
func readBoltFile(from io.ReaderAt, size int64) (*boltFile, error) {
	f := &boltFile{from: from, size: size, seen: make(map[uint64]bool), values: make(map[string][]byte)}
	if err := f.readMeta(); err != nil {
		return nil, err
	}
	if f.meta.freelist != boltNoFreelist {
		if err := f.checkFreelist(); err != nil {
			return nil, err
		}
	}
	err := f.walk(f.meta.root, 0, nil, func(flags uint32, key, value []byte) error {
		switch {
		case flags != boltLeafBucket:
			return fmt.Errorf("%q is no bucket", key)
		case string(key) == "conf":
			return f.walkBucket(value, func(flags uint32, key, value []byte) error {
				if flags != 0 {
					return fmt.Errorf("value %q is a bucket", key)
				}
				f.values[string(key)] = bytes.Clone(value)
				return nil
			})
		case string(key) == "logs":
			return f.walkBucket(value, func(flags uint32, key, _ []byte) error {
				if flags != 0 || len(key) != 8 {
					return fmt.Errorf("log entry under %q", key)
				}
				f.logs++
				return nil
			})
		}
		return fmt.Errorf("unknown bucket %q", key)
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// readMeta wants both meta pages whole. bbolt makes do with one: but the other
// may be the newer one, and its transaction a vote. A power failure cannot leave
// half of one, since what is in it fits in one sector.
func (f *boltFile) readMeta() error {
	first, err := f.metaAt(0)
	if err != nil {
		return fmt.Errorf("meta page 0: %w", err)
	}
	second, err := f.metaAt(first.pageSize)
	if err != nil {
		return fmt.Errorf("meta page 1: %w", err)
	}
	older, newer := first, second
	if older.transaction > newer.transaction {
		older, newer = newer, older
	}
	switch {
	case first.pageSize != second.pageSize:
		return fmt.Errorf("pages of %d and of %d octets", first.pageSize, second.pageSize)
	case newer.transaction != older.transaction+1:
		return fmt.Errorf("meta pages of the transactions %d and %d", older.transaction, newer.transaction)
	}
	f.meta = newer
	if pages := uint64(f.size / f.meta.pageSize); pages < f.meta.pages {
		return fmt.Errorf("cut short: %d pages of %d", pages, f.meta.pages)
	}
	return nil
}

func (f *boltFile) metaAt(offset int64) (boltMeta, error) {
	b := make([]byte, boltPageHead+boltMetaBytes)
	if _, err := f.from.ReadAt(b, offset); err != nil {
		return boltMeta{}, err
	}
	b = b[boltPageHead:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:boltMetaSummed])
	switch {
	case order.Uint32(b) != boltMagic:
		return boltMeta{}, fmt.Errorf("magic %08x", order.Uint32(b))
	case order.Uint32(b[4:]) != boltVersion:
		return boltMeta{}, fmt.Errorf("version %d", order.Uint32(b[4:]))
	case order.Uint64(b[boltMetaSummed:]) != sum.Sum64():
		return boltMeta{}, fmt.Errorf("wrong checksum")
	}
	m := boltMeta{
		pageSize:    int64(order.Uint32(b[8:])),
		root:        order.Uint64(b[16:]),
		freelist:    order.Uint64(b[32:]),
		pages:       order.Uint64(b[40:]),
		transaction: order.Uint64(b[48:]),
	}
	if m.pageSize < boltPageBytesMin || m.pageSize > boltPageBytesMax || m.pageSize&(m.pageSize-1) != 0 {
		return boltMeta{}, fmt.Errorf("pages of %d octets", m.pageSize)
	}
	return m, nil
}

// A boltPage is a page with its head read.
type boltPage struct {
	kind  uint16
	count int
	data  []byte // whole, with the head
}

// page reads a page and what it goes on over, once.
func (f *boltFile) page(number uint64) (boltPage, error) {
	if number < 2 || number >= f.meta.pages {
		return boltPage{}, fmt.Errorf("page %d of %d", number, f.meta.pages)
	}
	head := make([]byte, boltPageHead)
	at := int64(number) * f.meta.pageSize
	if _, err := f.from.ReadAt(head, at); err != nil {
		return boltPage{}, fmt.Errorf("page %d: %w", number, err)
	}
	more := uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != number || more >= f.meta.pages-number {
		return boltPage{}, fmt.Errorf("page %d: has number %d and goes on over %d", number, order.Uint64(head), more)
	}
	for n := number; n <= number+more; n++ {
		if f.seen[n] {
			return boltPage{}, fmt.Errorf("page %d: in two places", n)
		}
		f.seen[n] = true
	}
	// Bounded by the size of the file, which is as large as it says.
	data := make([]byte, int64(more+1)*f.meta.pageSize)
	if _, err := f.from.ReadAt(data, at); err != nil {
		return boltPage{}, fmt.Errorf("page %d: %w", number, err)
	}
	p, err := parsePage(data)
	if err != nil {
		return boltPage{}, fmt.Errorf("page %d: %w", number, err)
	}
	return p, nil
}

func parsePage(data []byte) (boltPage, error) {
	if len(data) < boltPageHead {
		return boltPage{}, fmt.Errorf("of %d octets", len(data))
	}
	p := boltPage{kind: order.Uint16(data[8:]), count: int(order.Uint16(data[10:])), data: data}
	if p.kind != boltFree && boltPageHead+p.count*boltElement > len(data) {
		return boltPage{}, fmt.Errorf("%d elements in %d octets", p.count, len(data))
	}
	return p, nil
}

// cut returns length octets of the page from offset on.
func (p boltPage) cut(offset int, length uint32) ([]byte, error) {
	if int64(offset)+int64(length) > int64(len(p.data)) {
		return nil, fmt.Errorf("an element reaches beyond its page")
	}
	return p.data[offset : offset+int(length)], nil
}

// checkFreelist: bbolt takes the list as it is, and would write over pages in
// use. We never let it write one but the first.
func (f *boltFile) checkFreelist() error {
	p, err := f.page(f.meta.freelist)
	if err != nil {
		return err
	}
	if p.kind != boltFree || p.count != 0 {
		return fmt.Errorf("page %d: a list of %d free pages, and of kind %d", f.meta.freelist, p.count, p.kind)
	}
	return nil
}

// A visit is told of each element in a leaf.
type visit func(flags uint32, key, value []byte) error

// walk goes through the tree below a page, which begins with a key above last.
func (f *boltFile) walk(number uint64, depth int, last []byte, each visit) error {
	_, err := f.walkPage(number, depth, last, each)
	return err
}

func (f *boltFile) walkPage(number uint64, depth int, last []byte, each visit) ([]byte, error) {
	if depth > boltDepthMax {
		return nil, fmt.Errorf("page %d: too deep", number)
	}
	p, err := f.page(number)
	if err != nil {
		return nil, err
	}
	switch {
	case p.kind == boltLeaf:
		if last, err = p.walkLeaf(last, each); err != nil {
			return nil, fmt.Errorf("page %d: %w", number, err)
		}
		return last, nil
	case p.kind != boltBranch || p.count == 0:
		return nil, fmt.Errorf("page %d: of kind %d, with %d elements", number, p.kind, p.count)
	}
	for i := range p.count {
		at := boltPageHead + i*boltElement
		element := p.data[at : at+boltElement]
		key, err := p.cut(at+int(order.Uint32(element)), order.Uint32(element[4:]))
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", number, err)
		}
		if last != nil && bytes.Compare(last, key) >= 0 {
			return nil, fmt.Errorf("page %d: keys out of order", number)
		}
		child := order.Uint64(element[8:])
		least := true
		last, err = f.walkPage(child, depth+1, last, func(flags uint32, k, value []byte) error {
			if least && bytes.Compare(k, key) < 0 {
				return fmt.Errorf("a key before that of its page")
			}
			least = false
			return each(flags, k, value)
		})
		if err != nil {
			return nil, err
		}
	}
	return last, nil
}

// walkLeaf goes through a leaf whose first key is above last, and returns its
// last key.
func (p boltPage) walkLeaf(last []byte, each visit) ([]byte, error) {
	if p.kind != boltLeaf {
		return nil, fmt.Errorf("of kind %d", p.kind)
	}
	for i := range p.count {
		at := boltPageHead + i*boltElement
		element := p.data[at : at+boltElement]
		begin, keyBytes := at+int(order.Uint32(element[4:])), order.Uint32(element[8:])
		key, err := p.cut(begin, keyBytes)
		if err != nil {
			return nil, err
		}
		value, err := p.cut(begin+int(keyBytes), order.Uint32(element[12:]))
		if err != nil {
			return nil, err
		}
		if len(key) == 0 || last != nil && bytes.Compare(last, key) >= 0 {
			return nil, fmt.Errorf("keys out of order")
		}
		last = key
		if err := each(order.Uint32(element), key, value); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// walkBucket goes through the bucket that is the value of an element.
func (f *boltFile) walkBucket(value []byte, each visit) error {
	if len(value) < boltBucketHead {
		return fmt.Errorf("a bucket of %d octets", len(value))
	}
	if root := order.Uint64(value); root != 0 {
		return f.walk(root, 0, nil, each)
	}
	p, err := parsePage(value[boltBucketHead:])
	if err != nil {
		return fmt.Errorf("a bucket within a page: %w", err)
	}
	_, err = p.walkLeaf(nil, each)
	return err
}
