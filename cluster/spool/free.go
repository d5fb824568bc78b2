package spool

import (
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/segment"
)

// free gives back the segments that nothing needs any more: no live body, and no
// deletion of a body in another segment that is still there. If such deletions
// are all that keeps a segment, they are written again at the end, so that one
// undelivered message does not keep a chain of files.
//
// The order matters. A file may go only when its going can no longer be undone
// by a crash while a deletion that concerned it is already gone; so what goes in
// one round has gone durably before the next round looks.
func (s *Spool) free() error {
	for {
		gone, move := s.freeable()
		if len(gone) > 0 {
			if err := s.set.Free(gone...); err != nil {
				return err
			}
			s.mu.Lock()
			for _, n := range gone {
				delete(s.uses, n)
			}
			s.mu.Unlock()
			continue
		}
		if len(move) == 0 {
			return nil
		}
		if err := s.moveDeletions(move); err != nil {
			return err
		}
	}
}

// freeable returns the segments that can go now, and those that could if their
// deletions stood elsewhere.
func (s *Spool) freeable() (gone, move []segment.Number) {
	active, writing := s.set.Active()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, u := range s.uses {
		if u.live > 0 || u.lost || writing && n == active {
			continue
		}
		u.deletions = slices.DeleteFunc(u.deletions, func(d deletion) bool { return s.uses[d.at.Segment] == nil })
		if len(u.deletions) == 0 {
			gone = append(gone, n)
		} else {
			move = append(move, n)
		}
	}
	slices.Sort(gone)
	slices.Sort(move)
	return gone, move
}

// moveDeletions writes the deletions of these segments into the active one.
func (s *Spool) moveDeletions(move []segment.Number) error {
	for _, n := range move {
		s.mu.Lock()
		ds := s.uses[n].deletions
		s.mu.Unlock()
		if err := s.appendDeletions(ds); err != nil {
			return err
		}
	}
	if err := s.set.Sync(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range move {
		s.uses[n].deletions = nil
	}
	return nil
}
