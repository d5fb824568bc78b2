package spool

import (
	"fmt"
	"slices"
)

// free removes the segments that nothing needs any more: no live body, and no
// deletion of a body in another segment that is still there. If such deletions
// are all that keeps a segment, they are written again at the end, so that one
// undelivered message does not keep a chain of files.
//
// The order matters. A file may go only when its name's removal can no longer
// be undone by a crash while a deletion that concerned it is already gone; so
// the removals of one round are durable before the next round looks.
func (s *Spool) free() error {
	for {
		gone, move := s.freeable()
		if len(gone) > 0 {
			if err := s.remove(gone); err != nil {
				return err
			}
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
func (s *Spool) freeable() (gone, move []*segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if g.live > 0 || g.damaged || g == s.writer.active {
			continue
		}
		g.deletions = slices.DeleteFunc(g.deletions, func(d deletion) bool { return s.segments[d.at.segment] == nil })
		if len(g.deletions) == 0 {
			gone = append(gone, g)
		} else {
			move = append(move, g)
		}
	}
	order := func(a, b *segment) int { return int(int64(a.number) - int64(b.number)) }
	slices.SortFunc(gone, order)
	slices.SortFunc(move, order)
	return gone, move
}

// remove unlinks segments, durably.
func (s *Spool) remove(gone []*segment) error {
	for _, g := range gone {
		if err := s.fs.Remove(s.segmentName(g.number)); err != nil {
			return fmt.Errorf("remove segment %d: %w", g.number, err)
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync spool directory: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range gone {
		delete(s.segments, g.number)
	}
	return nil
}

// moveDeletions writes the deletions of these segments into the active one.
func (s *Spool) moveDeletions(move []*segment) error {
	for _, g := range move {
		if err := s.appendDeletions(g.deletions); err != nil {
			return err
		}
	}
	if err := s.sync(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range move {
		g.deletions = nil
	}
	return nil
}
