package spool

import (
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A coming is a body that the writer has been given, by one Put or by several,
// and has not answered yet.
type coming struct {
	ref  mail.BodyRef
	puts int
	// ended is made when somebody waits, and closed with the last of the puts.
	ended chan struct{}
}

// expect enters a body into coming, and wakes who waits for it. False means that
// another body has its id.
func (s *Spool) expect(ref mail.BodyRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.index[ref.ID]; ok && !e.is(ref) {
		return false
	}
	c := s.coming[ref.ID]
	if c == nil {
		c = &coming{ref: ref}
		s.coming[ref.ID] = c
	}
	if c.ref != ref {
		return false
	}
	if c.puts++; c.puts == 1 {
		s.waiters.arrive(ref)
	}
	return true
}

// came takes back what expect did, when the Put has ended.
func (s *Spool) came(id mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coming[id]
	if c.puts--; c.puts > 0 {
		return
	}
	delete(s.coming, id)
	if c.ended != nil {
		close(c.ended)
	}
}

func (s *Spool) comingLocked(ref mail.BodyRef) bool {
	c := s.coming[ref.ID]
	return c != nil && c.ref == ref
}

// Await waits while a body is on its way to the disk. It is there when Await
// returns nil, if Pin has said that it is here or coming. The error is what Err
// returns, or ErrClosed.
func (s *Spool) Await(ref mail.BodyRef) error {
	for {
		s.mu.Lock()
		c := s.coming[ref.ID]
		if c == nil || c.ref != ref {
			defer s.mu.Unlock()
			switch {
			case s.heldLocked(ref):
				return nil
			case s.err != nil:
				return s.err
			}
			select {
			case <-s.stop:
				return ErrClosed
			default:
				return nil
			}
		}
		if c.ended == nil {
			c.ended = make(chan struct{})
		}
		ended := c.ended
		s.mu.Unlock()
		s.Hasten()
		<-ended
	}
}
