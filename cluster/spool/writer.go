package spool

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The bounds of one batch, that is, of what shares a sync. The last body may
// take it past batchBytesMax.
const (
	batchJobsMax  = 1024
	batchBytesMax = 16 << 20
)

// Small bodies are gathered in one write; copying them costs less than a system
// call each. Larger ones are written from where they lie.
const (
	writeBufferBytes = 1 << 20
	copyBytesMax     = 64 << 10
)

// A writer is the state of the goroutine that writes. Nobody else touches it
// between Open and the end of that goroutine.
type writer struct {
	active *segment // nil until something is written
	file   vfs.File // of active
	buf    []byte   // written to the file next, at active.end - len(buf)
	// attested: all of the file before this offset is synced.
	//
	// Invariant: attested <= active.end - len(buf) <= active.end.
	attested int64
	last     segmentNumber // the greatest number ever seen
	// owed are deletions to write with the next batch: of records that another
	// record of the same body stands in for.
	owed     []deletion
	closeErr error
}

// write is the writer goroutine.
func (s *Spool) write() {
	defer close(s.done)
	for {
		select {
		case j := <-s.jobs:
			s.commit(s.gather(j))
		case <-s.stop:
			s.writer.closeErr = s.finish()
			return
		}
	}
}

// gather returns first and all jobs that wait behind it, up to the bounds.
func (s *Spool) gather(first *job) []*job {
	// Whoever is about to put goes first: one sync then serves them all.
	runtime.Gosched()
	batch := []*job{first}
	for size := first.ref.Size; len(batch) < batchJobsMax && size < batchBytesMax; {
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
			size += j.ref.Size
		default:
			return batch
		}
	}
	return batch
}

// A plan is what a batch comes to.
type plan struct {
	puts      []*putPlan
	deletions []deletion
	answers   []answer // jobs that wait for the sync
	deletes   []answer // Deletes, which wait for the freeing of segments too
}

type putPlan struct {
	job *job
	at  place
}

type answer struct {
	job *job
	err error
}

// commit makes a batch durable, then visible, then answers it. In this order:
// a body that was visible before the sync could be counted on and lost.
func (s *Spool) commit(batch []*job) {
	if err := s.Err(); err != nil {
		for _, j := range batch {
			j.done <- err
		}
		return
	}
	p := s.plan(batch)
	if err := s.store(p); err != nil {
		err = s.fail(err)
		for _, a := range append(p.answers, p.deletes...) {
			a.job.done <- err
		}
		return
	}
	s.publish(p)
	for _, a := range p.answers {
		a.job.done <- a.err
	}
	if len(p.deletions) == 0 && len(p.deletes) == 0 {
		return
	}
	err := s.free()
	if err != nil {
		err = s.fail(err)
	}
	for _, a := range p.deletes {
		a.job.done <- err
	}
}

// plan decides what has to be written, in the order of the jobs. Bodies that
// are to be deleted leave the index here: a Put that comes from now on writes
// its body anew, and the tombstone, which names a place, does not mean it.
func (s *Spool) plan(batch []*job) *plan {
	p := new(plan)
	p.deletions = append(p.deletions, s.writer.owed...)
	s.writer.owed = nil
	inBatch := make(map[mail.QueueID]mail.BodyRef, len(batch))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range batch {
		if len(j.deletes) > 0 {
			for _, ref := range j.deletes {
				p.deletions = s.dropDoomedLocked(p.deletions, ref)
			}
			p.deletes = append(p.deletes, answer{job: j})
			continue
		}
		a := answer{job: j}
		e, known := s.index[j.ref.ID]
		_, bad := s.bad[j.ref.ID]
		twin, twice := inBatch[j.ref.ID]
		switch {
		case known && !e.is(j.ref), twice && twin != j.ref:
			a.err = ErrConflict
		case known && !bad:
			s.spareLocked(j.ref)
		case twice: // written once, for both
		default:
			if bad {
				// A Delete later in this batch must not strike it out again.
				delete(s.doomed, j.ref.ID)
				p.deletions = append(p.deletions, deletion{id: j.ref.ID, at: e.at})
			}
			inBatch[j.ref.ID] = j.ref
			p.puts = append(p.puts, &putPlan{job: j})
		}
		p.answers = append(p.answers, a)
	}
	return p
}

// dropDoomedLocked takes ref out of the index if it is doomed, and appends its
// tombstone.
func (s *Spool) dropDoomedLocked(to []deletion, ref mail.BodyRef) []deletion {
	e, ok := s.index[ref.ID]
	if !ok || !e.is(ref) {
		return to
	}
	if _, doomed := s.doomed[ref.ID]; !doomed {
		return to
	}
	if _, bad := s.bad[ref.ID]; !bad {
		s.counts.bodyBytes -= ref.Size
	}
	delete(s.index, ref.ID)
	delete(s.bad, ref.ID)
	delete(s.doomed, ref.ID)
	return append(to, deletion{id: ref.ID, at: e.at})
}

// store writes what the plan says and syncs it.
func (s *Spool) store(p *plan) error {
	if len(p.puts) == 0 && len(p.deletions) == 0 {
		return nil
	}
	if err := s.appendDeletions(p.deletions); err != nil {
		return err
	}
	for _, put := range p.puts {
		var err error
		if put.at, err = s.appendBody(put.job); err != nil {
			return fmt.Errorf("append body %s: %w", put.job.ref.ID, err)
		}
	}
	return s.sync()
}

// publish makes visible what is durable now.
func (s *Spool) publish(p *plan) {
	since := s.sinceOpen()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range p.deletions {
		// The segment is there as long as a body in it is not struck out.
		s.segments[d.at.segment].live--
	}
	for _, put := range p.puts {
		ref := put.job.ref
		delete(s.bad, ref.ID)
		delete(s.doomed, ref.ID)
		s.index[ref.ID] = entry{digest: ref.Digest, size: uint32(ref.Size), at: put.at, since: since}
		s.segments[put.at.segment].live++
		s.counts.bodyBytes += ref.Size
		s.counts.puts++
		s.waiters.arrive(ref)
	}
}

// appendBody writes one body's record.
func (s *Spool) appendBody(j *job) (place, error) {
	r := record{
		kind:       kindBody,
		payloadCRC: j.crc,
		length:     int64(j.ref.Size),
		id:         j.ref.ID,
		digest:     j.ref.Digest,
	}
	return s.appendRecord(r, j.chunks)
}

// appendDeletions writes tombstones, and remembers in which file they stand.
func (s *Spool) appendDeletions(ds []deletion) error {
	for len(ds) > 0 {
		n := min(len(ds), deletionsPerRecordMax)
		payload := make([]byte, 0, n*deletionBytes)
		for _, d := range ds[:n] {
			payload = appendDeletion(payload, d)
		}
		r := record{kind: kindDeletions, payloadCRC: checksum(payload), length: int64(len(payload))}
		at, err := s.appendRecord(r, [][]byte{payload})
		if err != nil {
			return fmt.Errorf("append deletions: %w", err)
		}
		s.mu.Lock()
		g := s.segments[at.segment]
		for _, d := range ds[:n] {
			if d.at.segment != at.segment {
				g.deletions = append(g.deletions, d)
			}
		}
		s.mu.Unlock()
		ds = ds[n:]
	}
	return nil
}

// appendRecord puts a record at the end of the active segment, or of a new one
// if there is no room. It is durable after the next sync.
func (s *Spool) appendRecord(r record, payload [][]byte) (place, error) {
	w := &s.writer
	need := recordBytes(r.length)
	full := w.active != nil && w.active.end > segmentHeadBytes && w.active.end+need > s.limit && r.kind != kindAttest
	if w.active == nil || full {
		if err := s.roll(); err != nil {
			return place{}, err
		}
	}
	r.offset, r.attested = w.active.end, w.attested
	if len(w.buf)+recordHeaderBytes > writeBufferBytes {
		if err := s.flush(); err != nil {
			return place{}, err
		}
	}
	w.buf = r.appendTo(w.buf, w.active.mark)
	s.grow(recordHeaderBytes)
	for _, c := range payload {
		if err := s.appendBytes(c); err != nil {
			return place{}, err
		}
	}
	padding := need - recordHeaderBytes - r.length
	if err := s.appendBytes(make([]byte, padding)); err != nil {
		return place{}, err
	}
	return placeOf(w.active.number, r.offset), nil
}

// appendBytes writes p behind what is there, by way of the buffer if p is
// small.
func (s *Spool) appendBytes(p []byte) error {
	w := &s.writer
	if len(w.buf)+len(p) > writeBufferBytes || len(p) > copyBytesMax {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if len(p) <= copyBytesMax {
		w.buf = append(w.buf, p...)
		s.grow(len(p))
		return nil
	}
	if err := writeAt(w.file, p, w.active.end); err != nil {
		return err
	}
	s.grow(len(p))
	return nil
}

// grow counts n more bytes in the active segment.
func (s *Spool) grow(n int) {
	s.mu.Lock()
	s.writer.active.end += int64(n)
	s.mu.Unlock()
}

// flush writes the buffer.
func (s *Spool) flush() error {
	w := &s.writer
	if len(w.buf) == 0 {
		return nil
	}
	err := writeAt(w.file, w.buf, w.active.end-int64(len(w.buf)))
	w.buf = w.buf[:0]
	return err
}

// writeAt is a WriteAt that takes a short write without an error for one.
func writeAt(f vfs.File, p []byte, off int64) error {
	n, err := f.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// sync makes all that was appended durable.
func (s *Spool) sync() error {
	w := &s.writer
	if err := s.flush(); err != nil {
		return err
	}
	if w.attested == w.active.end {
		return nil
	}
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("sync segment %d: %w", w.active.number, err)
	}
	w.attested = w.active.end
	s.mu.Lock()
	s.counts.syncs++
	s.mu.Unlock()
	return nil
}

// roll ends the active segment and begins the next one. The old one is wholly
// synced before the new one exists: only the last segment can have a torn tail.
// The new one's head and name are durable before a record is written to it.
func (s *Spool) roll() error {
	w := &s.writer
	if w.active != nil {
		if err := s.sync(); err != nil {
			return err
		}
		if err := w.file.Close(); err != nil {
			return fmt.Errorf("close segment %d: %w", w.active.number, err)
		}
		w.active, w.file = nil, nil
	}
	g := &segment{number: w.last + 1, end: segmentHeadBytes}
	if g.number == 0 {
		return errNumbers
	}
	if _, err := io.ReadFull(s.random, g.mark[:]); err != nil {
		return fmt.Errorf("draw the mark of segment %d: %w", g.number, err)
	}
	f, err := s.fs.Create(s.segmentName(g.number))
	if err != nil {
		return fmt.Errorf("create segment %d: %w", g.number, err)
	}
	if err := s.begin(f, g); err != nil {
		_ = f.Close()
		return fmt.Errorf("begin segment %d: %w", g.number, err)
	}
	w.active, w.file, w.attested, w.last = g, f, g.end, g.number
	if w.buf == nil {
		w.buf = make([]byte, 0, writeBufferBytes)
	}
	s.mu.Lock()
	s.segments[g.number] = g
	s.mu.Unlock()
	return nil
}

var errNumbers = errors.New("segment numbers are used up")

// begin writes the head of a new file, then makes the file durable, then its
// name.
func (s *Spool) begin(f vfs.File, g *segment) error {
	if err := writeAt(f, segmentHeader{number: g.number, mark: g.mark}.encode(), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// finish ends the active segment when the spool is closed. The last record
// says that all before it was synced, so that the next Open need not suspect it.
func (s *Spool) finish() error {
	w := &s.writer
	if w.active == nil {
		return nil
	}
	err := s.Err()
	if err == nil && w.active.end > segmentHeadBytes {
		if _, err = s.appendRecord(record{kind: kindAttest}, nil); err == nil {
			err = s.sync()
		}
		if err != nil {
			err = s.fail(err)
		}
	}
	if cerr := w.file.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

func (s *Spool) segmentName(n segmentNumber) string {
	return filepath.Join(s.dir, segmentFile(n))
}
