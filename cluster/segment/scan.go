package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A region is a stretch of a file.
type region struct{ from, to int64 }

// A scan reads one segment file from the first record to the end.
type scan struct {
	window
	mark mark
	// sealed: all of it was durable once, so only headers are read, and what is
	// unreadable is damage.
	sealed bool

	records []found
	damage  []region // was durable and cannot be read
	torn    []region // was perhaps never durable, and cannot be read
	// attested is the greatest of the records' attested fields: everything
	// before it was synced once.
	attested int64
}

// run reads the file. Where a header is damaged it goes on at the next good one.
func (c *scan) run() error {
	c.attested = headBytes
	var unreadable []region
	for off := int64(headBytes); off < c.size; {
		r, ok, err := c.header(off)
		if err != nil {
			return err
		}
		if !ok {
			next, err := c.next(off + recordAlign)
			if err != nil {
				return err
			}
			used := next < c.size
			if !used {
				used, err = c.marked(off)
				if err != nil {
					return err
				}
			}
			if used {
				unreadable = append(unreadable, region{off, next})
			}
			off = next
			continue
		}
		if r.kind == kindIndex {
			// The last record of a segment whose seal is not there. If it is whole,
			// the writer was about to seal; mend makes it anew in either case.
			break
		}
		one, err := c.payload(r)
		if err != nil {
			return err
		}
		c.records = append(c.records, one)
		c.attested = max(c.attested, r.attested)
		off = min(r.end(), c.size)
	}
	for _, u := range unreadable {
		if c.sealed || u.from < c.attested {
			c.damage = append(c.damage, u)
		} else {
			c.torn = append(c.torn, u)
		}
	}
	c.judge()
	return nil
}

// judge sorts out the records whose payload is wrong. Where nobody attested it,
// it is torn as a whole, and the record counts for nothing. Gaps were needed to
// get over what they cover.
func (c *scan) judge() {
	c.records = slices.DeleteFunc(c.records, func(r found) bool {
		if r.kind == kindGap {
			return c.sealed // mend must see where they end
		}
		torn := r.damaged && !c.sealed && r.offset >= c.attested
		switch {
		case torn:
			c.torn = append(c.torn, region{r.offset, min(r.end(), c.size)})
		case r.damaged:
			c.damage = append(c.damage, region{r.offset, r.end()})
		}
		return torn
	})
}

// header reads the record header at off, with its label.
func (c *scan) header(off int64) (record, bool, error) {
	b, err := c.read(off, recordHeaderBytes+LabelBytesMax)
	if err != nil {
		return record{}, false, err
	}
	r, ok := decodeRecord(b, c.mark, off)
	// The padding alone may be missing: it says nothing.
	if !ok || r.payload()+r.length > c.size {
		return record{}, false, nil
	}
	r.label = bytes.Clone(r.label) // the window moves on
	return r, true, nil
}

// marked reports whether a record was begun at off.
func (c *scan) marked(off int64) (bool, error) {
	b, err := c.read(off, len(c.mark))
	return err == nil && bytes.Equal(b, c.mark[:]), err
}

// payload checks the payload of r if there may be a doubt.
func (c *scan) payload(r record) (found, error) {
	one := found{record: r}
	if c.sealed || r.kind == kindGap {
		return one, nil
	}
	var sum uint32
	for off, end := r.payload(), r.payload()+r.length; off < end; {
		b, err := c.read(off, int(min(windowBytes, end-off)))
		if err != nil {
			return found{}, err
		}
		sum = extendChecksum(sum, b)
		off += int64(len(b))
	}
	one.damaged = sum != r.sum
	return one, nil
}

// next returns the offset of the first good header from off on, or the size.
// The mark makes it certain that it is one of ours.
func (c *scan) next(off int64) (int64, error) {
	for off < c.size {
		b, err := c.read(off, windowBytes)
		if err != nil {
			return 0, err
		}
		stretch := int64(len(b))
		for from := 0; ; {
			i := bytes.Index(b[from:], c.mark[:])
			if i < 0 {
				break
			}
			at := off + int64(from+i)
			if at%recordAlign == 0 {
				_, ok, err := c.header(at)
				if ok || err != nil {
					return at, err
				}
				if b, err = c.read(off, windowBytes); err != nil { // header may have moved the window
					return 0, err
				}
			}
			from += i + 1
		}
		// A mark may begin in the last bytes of this stretch.
		off += stretch - min(stretch-1, recordAlign-1)
		if c.size-off < recordHeaderBytes {
			break
		}
	}
	return c.size, nil
}

// windowBytes is what a window reads at a time.
const windowBytes = 256 << 10

// A window reads a file from front to back in long stretches. A block that
// cannot be read is zeros: no record begins in it, and a payload in it differs
// from its checksum.
type window struct {
	file vfs.File
	size int64
	buf  []byte
	at   int64 // buf is what the file has from here on
}

// read returns n octets from off on, fewer at the end of the file. They are good
// until the next call.
func (w *window) read(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if n <= 0 {
		return nil, nil
	}
	if off < w.at || off+int64(n) > w.at+int64(len(w.buf)) {
		if err := w.fill(off); err != nil {
			return nil, fmt.Errorf("read at %d: %w", off, err)
		}
	}
	return w.buf[off-w.at:][:n], nil
}

func (w *window) fill(off int64) error {
	if w.buf == nil {
		w.buf = make([]byte, min(windowBytes, w.size))
	}
	w.buf = w.buf[:min(int64(cap(w.buf)), w.size-off)]
	w.at = off
	err := readFull(w.file, w.buf, off)
	if err == nil || !vfs.Unreadable(err) {
		return err
	}
	for from := int64(0); from < int64(len(w.buf)); {
		to := min((off+from)/pageBytes*pageBytes+pageBytes-off, int64(len(w.buf)))
		piece := w.buf[from:to]
		if err := readFull(w.file, piece, off+from); vfs.Unreadable(err) {
			clear(piece)
		} else if err != nil {
			return err
		}
		from = to
	}
	return nil
}

// readFull is a ReadAt to which the end of the file is an error only if
// something is missing.
func readFull(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
