package spool

import (
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// enter puts a record that Open found into the index. Nobody else has the spool
// yet. What it does not know, or cannot read, it passes over: a body that is
// lost is fetched again, and one that comes back for want of its tombstone is
// listed and reclaimed again.
func (s *Spool) enter(r segment.Record) error {
	u := s.useLocked(r.Place.Segment)
	switch r.Kind {
	case kindBody:
		if ref, ok := parseBodyLabel(r.Label, r.Length); ok {
			s.enterBody(u, ref, r)
		}
	case kindDeletions:
		if r.Damaged || r.Length > deletionsPerRecordMax*deletionBytes {
			break
		}
		payload, err := r.Payload()
		if err != nil {
			s.log.Error("deletions cannot be read", "segment", r.Place.Segment, "offset", r.Place.Offset(), "error", err)
			break
		}
		for _, d := range decodeDeletions(payload) {
			s.enterDeletion(r.Place.Segment, u, d)
		}
	}
	return nil
}

func (s *Spool) enterBody(u *use, ref mail.BodyRef, r segment.Record) {
	u.need(uint32(r.Length))
	if old, ok := s.index[ref.ID]; ok {
		// A later record stands in for an earlier one, which was damaged or copied
		// forward. Its tombstone did not get to the disk.
		s.forget(ref.ID, old)
		s.owed = append(s.owed, old.deletion(ref.ID))
	}
	s.index[ref.ID] = entry{digest: ref.Digest, size: uint32(ref.Size), at: r.Place}
	if r.Damaged {
		s.bad[ref.ID] = struct{}{}
		return
	}
	s.counts.bodyBytes += ref.Size
}

func (s *Spool) enterDeletion(in segment.Number, u *use, d deletion) {
	if d.at.Segment != in {
		u.deletions = append(u.deletions, d) // free drops it if nothing needs it
	}
	target := s.uses[d.at.Segment]
	if target == nil {
		return // gone for good, or lost
	}
	if e, ok := s.index[d.id]; ok && e.at == d.at {
		s.forget(d.id, e)
		target.unneed(e.size)
		return
	}
	if i := slices.Index(s.owed, d); i >= 0 {
		s.owed = slices.Delete(s.owed, i, i+1)
		target.unneed(d.size)
	}
}

// forget takes an entry out of the index.
func (s *Spool) forget(id mail.QueueID, e entry) {
	if _, bad := s.bad[id]; !bad {
		s.counts.bodyBytes -= mail.ByteSize(e.size)
	}
	delete(s.index, id)
	delete(s.bad, id)
}

// survey takes note of the segments that no record was found in.
func (s *Spool) survey() {
	for _, g := range s.set.Segments() {
		s.useLocked(g.Number).lost = g.Lost
	}
}
