package segment

import "fmt"

// Free makes it durable that these segments are gone, and with them their
// records. Their files go to the pool if it has room and nobody reads them, and
// are unlinked otherwise; readers that are open stay good in either case. The
// active segment, and one that is lost, cannot be freed.
//
// In this order: the files lose their names, and the directory is synced. Only
// then is a file's content anybody else's: until the sync, a crash may bring the
// old name back.
func (s *Set) Free(numbers ...Number) error {
	if err := s.ready(); err != nil {
		return err
	}
	if len(numbers) == 0 {
		return nil
	}
	if err := s.free(numbers); err != nil {
		return s.fail(err)
	}
	return nil
}

func (s *Set) free(numbers []Number) error {
	var recycled []poolFile
	for _, n := range numbers {
		g, unused, err := s.strike(n)
		if err != nil {
			return err
		}
		name := ""
		if unused {
			name = s.pool.offer(g.size)
		}
		if name != "" {
			recycled = append(recycled, poolFile{name, g.size})
			err = s.fs.Rename(s.segmentName(n), name)
		} else {
			err = s.fs.Remove(s.segmentName(n))
		}
		if err != nil {
			return fmt.Errorf("free segment %d: %w", n, err)
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync directory of segments: %w", err)
	}
	s.mu.Lock()
	for _, n := range numbers {
		delete(s.segments, n)
	}
	s.mu.Unlock()
	for _, f := range recycled {
		s.pool.add(f)
	}
	return nil
}

// strike marks a segment as freed, so that nobody opens it any more, and reports
// whether its file is fit to be used again: whole, and without a reader.
func (s *Set) strike(n Number) (g *segment, unused bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g = s.segments[n]
	switch {
	case g == nil || g.freed:
		return nil, false, fmt.Errorf("free segment %d: %w", n, ErrGone)
	case g == s.writer.active || g.lost:
		return nil, false, fmt.Errorf("free segment %d: it is written to, or lost", n)
	}
	g.freed = true
	return g, g.readers == 0 && !g.worn, nil
}
