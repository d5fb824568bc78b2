package spool

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The bounds of one batch, that is, of what shares a sync. The last body may
// take it past batchBytesMax.
const (
	batchJobsMax  = 1024
	batchBytesMax = 16 << 20
)

// write is the writer goroutine: the only one that changes the set of segments.
func (s *Spool) write() {
	for {
		select {
		case <-s.line.wake:
			// Whoever is about to join goes first: one sync then covers it all.
			runtime.Gosched()
			if batch := s.line.take(); len(batch) > 0 {
				s.commit(batch)
			}
		case <-s.stop:
			for _, j := range s.line.close() {
				j.done(ErrClosed)
			}
			return
		}
	}
}

// A plan is what a batch comes to.
type plan struct {
	puts      []*written
	copies    map[mail.QueueID]*written
	deletions []deletion
	answers   []answer // jobs that wait for the sync
	deletes   []answer // Deletes, which wait for the freeing of segments too
}

// copying returns what is copied forward, in the order in which it lies.
func (p *plan) copying() []*written {
	return slices.SortedFunc(maps.Values(p.copies), func(a, b *written) int {
		return cmp.Or(cmp.Compare(a.from.Segment, b.from.Segment), cmp.Compare(a.from.Offset(), b.from.Offset()))
	})
}

type answer struct {
	job *job
	err error
}

// commit makes a batch durable, then visible, then answers it. In this order:
// a body that was visible before the sync could be counted on and lost.
func (s *Spool) commit(batch []*job) {
	s.batches.Add(1)
	if err := s.Err(); err != nil {
		for _, j := range batch {
			j.done(err)
		}
		return
	}
	p := s.plan(batch)
	if err := s.store(p); err != nil {
		err = s.fail(err)
		for _, a := range append(p.answers, p.deletes...) {
			a.job.done(err)
		}
		return
	}
	s.publish(p)
	for _, a := range p.answers {
		a.job.done(a.err)
	}
	began := s.began()
	if len(p.deletions) == 0 && len(p.deletes) == 0 {
		if began {
			s.nudge()
		}
		return
	}
	err := s.free()
	if err != nil {
		err = s.fail(err)
	}
	// Before a Delete is answered, since the keeper asks for some: it would rest
	// again, or not, by whether it is quicker than we are.
	s.nudge()
	for _, a := range p.deletes {
		a.job.done(err)
	}
}

// began reports whether another segment is written to than last time: the pool
// has given one.
func (s *Spool) began() bool {
	n, _ := s.set.Active()
	began := n != s.active
	s.active = n
	return began
}

// plan decides what has to be written, in the order of the jobs. Bodies that
// are to be deleted leave the index here: a Put that comes from now on writes
// its body anew, and the tombstone, which names a place, does not mean it.
func (s *Spool) plan(batch []*job) *plan {
	p := new(plan)
	p.deletions = append(p.deletions, s.owed...)
	s.owed = nil
	p.copies = make(map[mail.QueueID]*written)
	inBatch := make(map[mail.QueueID]mail.BodyRef, len(batch))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range batch {
		switch j.kind {
		case jobDelete:
			for _, ref := range j.deletes {
				s.dropDoomedLocked(p, ref)
			}
			p.deletes = append(p.deletes, answer{job: j})
		case jobCopy:
			for i, c := range j.copies {
				if s.liesLocked(c.ref, c.from) {
					p.copies[c.ref.ID] = &j.copies[i]
				}
			}
			p.answers = append(p.answers, answer{job: j})
		default:
			p.answers = append(p.answers, answer{job: j, err: s.planPutLocked(p, &j.body, inBatch)})
		}
	}
	return p
}

// planPutLocked decides what a Put comes to. inBatch has what earlier ones of
// the same batch write.
func (s *Spool) planPutLocked(p *plan, b *written, inBatch map[mail.QueueID]mail.BodyRef) error {
	id := b.ref.ID
	e, known := s.index[id]
	_, bad := s.bad[id]
	twin, twice := inBatch[id]
	switch {
	case known && !e.is(b.ref), twice && twin != b.ref:
		return ErrConflict
	case known && !bad:
		s.spareLocked(b.ref)
	case twice: // written once, for both
	default:
		if bad {
			// A Delete later in this batch must not strike it out again.
			delete(s.doomed, id)
			p.deletions = append(p.deletions, e.deletion(id))
		}
		inBatch[id] = b.ref
		p.puts = append(p.puts, b)
	}
	return nil
}

// dropDoomedLocked takes ref out of the index if it is doomed, and plans its
// tombstone. A copy forward of it that is in the same batch is not made: nothing
// would strike that out.
func (s *Spool) dropDoomedLocked(p *plan, ref mail.BodyRef) {
	e, ok := s.index[ref.ID]
	if !ok || !e.is(ref) {
		return
	}
	if _, doomed := s.doomed[ref.ID]; !doomed {
		return
	}
	delete(p.copies, ref.ID)
	s.forget(ref.ID, e)
	delete(s.doomed, ref.ID)
	p.deletions = append(p.deletions, e.deletion(ref.ID))
}

// liesLocked reports whether the body still lies there, and is not known to be
// damaged.
func (s *Spool) liesLocked(ref mail.BodyRef, at segment.Place) bool {
	e, ok := s.index[ref.ID]
	_, bad := s.bad[ref.ID]
	return ok && !bad && e.is(ref) && e.at == at
}

// store writes what the plan says and syncs it.
func (s *Spool) store(p *plan) error {
	if len(p.puts) == 0 && len(p.copies) == 0 && len(p.deletions) == 0 {
		return nil
	}
	if err := s.appendDeletions(p.deletions); err != nil {
		return err
	}
	// Large ones first: what follows them goes past the page cache with them.
	slices.SortStableFunc(p.puts, func(a, b *written) int { return cmp.Compare(a.rank(), b.rank()) })
	for _, b := range p.puts {
		if err := s.appendBody(b); err != nil {
			return err
		}
	}
	for _, b := range p.copying() {
		if err := s.appendBody(b); err != nil {
			return err
		}
	}
	return s.set.Sync()
}

func (s *Spool) appendBody(b *written) (err error) {
	if b.at, err = s.set.Append(kindBody, bodyLabel(b.ref), b.payload); err != nil {
		return fmt.Errorf("append body %s: %w", b.ref.ID, err)
	}
	return nil
}

// publish makes visible what is durable now.
func (s *Spool) publish(p *plan) {
	since := s.sinceOpen()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range p.deletions {
		// The segment is there as long as a body in it is not struck out.
		s.uses[d.at.Segment].unneed(d.size)
	}
	for _, b := range p.puts {
		delete(s.bad, b.ref.ID)
		delete(s.doomed, b.ref.ID)
		s.placeLocked(b, since)
		s.counts.bodyBytes += b.ref.Size
		s.counts.puts++
		s.waiters.arrive(b.ref)
	}
	for _, b := range p.copying() {
		id := b.ref.ID
		old := s.index[id]
		s.placeLocked(b, old.since)
		s.counts.compacted += b.ref.Size
		// The old record keeps its place until its tombstone is durable. That must
		// not get to the disk before the copy does, so it waits for the next batch.
		s.owed = append(s.owed, old.deletion(id))
		if _, bad := s.bad[id]; bad { // found since; the copy was made of what was good
			delete(s.bad, id)
			s.counts.bodyBytes += b.ref.Size
			s.waiters.arrive(b.ref)
		}
	}
}

// placeLocked enters a body where it was written.
func (s *Spool) placeLocked(b *written, since uint32) {
	e := entry{digest: b.ref.Digest, size: uint32(b.ref.Size), at: b.at, since: since}
	s.index[b.ref.ID] = e
	s.useLocked(b.at.Segment).need(e.size)
}

// appendDeletions writes tombstones, and remembers in which segment they stand.
func (s *Spool) appendDeletions(ds []deletion) error {
	for len(ds) > 0 {
		n := min(len(ds), deletionsPerRecordMax)
		payload := make([]byte, 0, n*deletionBytes)
		for _, d := range ds[:n] {
			payload = appendDeletion(payload, d)
		}
		at, err := s.set.Append(kindDeletions, nil, segment.NewPayload(payload))
		if err != nil {
			return fmt.Errorf("append deletions: %w", err)
		}
		s.mu.Lock()
		u := s.useLocked(at.Segment)
		for _, d := range ds[:n] {
			if d.at.Segment != at.Segment {
				u.deletions = append(u.deletions, d)
			}
		}
		s.mu.Unlock()
		ds = ds[n:]
	}
	return nil
}
