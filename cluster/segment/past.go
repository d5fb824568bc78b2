package segment

import "github.com/holdfast-mx/holdfast/cluster/vfs"

// This file is what makes writes go past the page cache: large payloads from where
// they lie, and small batches in sectors.

// What is written through the page cache is written in whole pages, and the last
// one of a batch again by the next one: a small batch costs a page more than it
// is long. So what is at most directBytesMax long goes past the page cache, in
// sectors, where the file was written ahead and the disk's sectors are shorter than
// a page. Beyond that a page more or less is not worth an octet that the page cache
// does not have.
const directBytesMax = 256 << 10

// LargeBytesMin is what a large payload has at least. It begins at a page of the file,
// behind a gap of at most a page and a header. So where it lies in pages of memory, too,
// the disk gets it from there, past the page cache: nothing is copied, and no page is
// looked for. What comes behind it in its batch is copied into the arena, so that all of
// it can go that way.
const LargeBytesMin = 128 << 10

// gap returns how long a gap has to be in front of r, so that a large payload begins
// at a page; 0 if there is none.
func (w *writer) gap(r record) int64 {
	head := int64(recordHeaderBytes + len(r.label))
	if !w.large || r.length < LargeBytesMin || head%recordAlign != 0 {
		return 0
	}
	n := pageBytes - 1 - (w.end+head-1)%pageBytes
	if n > 0 && n < recordHeaderBytes {
		n += pageBytes
	}
	return n
}

// beginLarge makes ready for r, if its payload is a large one: from here on up to the
// next sync everything is appended so that it can go past the page cache.
func (s *Set) beginLarge(r record) error {
	w := &s.writer
	if !w.large || r.length < LargeBytesMin {
		return nil
	}
	if !w.past && len(w.pieces) > 0 {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if cap(w.arena) < arenaBytesMax {
		w.arena = append(vfs.Aligned(arenaBytesMax)[:0], w.arena...)
	}
	w.past = true
	if n := w.gap(r); n > 0 {
		p := NewPayload(zeros[:n-recordHeaderBytes])
		return s.appendRecord(record{kind: kindGap, sum: p.sum, length: p.length, offset: w.end}, p)
	}
	return nil
}

// appendPast puts p behind what is there so that it can go past the page cache: from
// where it lies, or copied.
func (s *Set) appendPast(p []byte) error {
	w := &s.writer
	for len(p) > 0 {
		if len(w.pieces)+2 >= piecesMax || w.end-w.flushed >= writeBytesMax || len(w.arena) == cap(w.arena) {
			if err := s.flush(); err != nil {
				return err
			}
		}
		var n int
		if len(p) > copyBytesMax && w.end%pageBytes == 0 && vfs.IsAligned(p, pageBytes) {
			n = len(p) / pageBytes * pageBytes
			w.closePiece()
			w.pieces = append(w.pieces, p[:n])
		} else {
			n = min(len(p), cap(w.arena)-len(w.arena))
			w.arena = append(w.arena, p[:n]...)
		}
		w.end += int64(n)
		p = p[n:]
	}
	return nil
}

// unit returns in which multiples what was appended can be written past the page
// cache; 0 if it cannot.
func (w *writer) unit() int64 {
	switch {
	case w.past:
		if end := pageUp(w.end); end <= w.ahead || w.large && end <= w.allocated {
			return pageBytes
		}
	case w.sector > 0 && w.sector < pageBytes && len(w.pieces) == 1 && len(w.pieces[0]) == len(w.arena):
		// The only piece is the arena.
		begin, end := w.flushed/w.sector*w.sector, (w.end+w.sector-1)/w.sector*w.sector
		if end <= w.ahead && end-begin <= directBytesMax {
			return w.sector
		}
	}
	return 0
}

// sectors makes the pieces begin at the multiple of unit that is before flushed, and
// end at the one that is behind end: with zeros, since what the file holds there means
// nothing.
func (w *writer) sectors(unit int64) [][]byte {
	w.pieces[0] = w.pieces[0][(w.flushed%pageBytes)/unit*unit:]
	if over := w.end % unit; over > 0 {
		last := &w.pieces[len(w.pieces)-1] // the end of the arena
		n := len(*last)
		*last = (*last)[:n+int(unit-over)]
		clear((*last)[n:])
	}
	return w.pieces
}

// keepTail keeps the end of what was appended.
func (w *writer) keepTail() {
	if w.sector == 0 {
		return
	}
	missing := int(w.end % pageBytes)
	var kept [pageBytes]byte
	tail := kept[:missing]
	for i := len(w.pieces) - 1; missing > 0; i-- {
		p := w.pieces[i]
		p = p[len(p)-min(len(p), missing):]
		missing -= len(p)
		copy(tail[missing:], p)
	}
	w.tail = append(w.tail[:0], tail...)
}
