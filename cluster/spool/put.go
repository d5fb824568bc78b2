package spool

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Put stores a body. When it returns nil, the body is on stable storage; bodies
// that wait at the same time share one sync. Nobody may write to the body any
// more.
//
// Putting what is held is nil and writes nothing. Putting what is doomed spares
// it: the octets are durable already, and whoever puts a body needs it. If the
// Delete has begun, the body is written anew, behind its tombstone. Either way
// the body is held when Put returns nil, and no Delete whose Doom came before
// takes it away. What was found damaged is written anew.
//
// A Put waits as long as the disk does; there is no taking it back. The error
// is ErrConflict, ErrMismatch or ErrTooLarge, which leave the spool as it was,
// ErrClosed, or what Err returns.
func (s *Spool) Put(ref mail.BodyRef, b *mail.Body) error {
	done := make(chan error, 1)
	s.PutThen(ref, b, func(err error) { done <- err })
	s.Hasten()
	return <-done
}

// PutThen begins a Put, and calls done once with what it came to: at once where
// nothing has to be written, otherwise from the goroutine that writes for
// everybody, which done must not hold up.
//
// It returns true when the body is held or will be, unless the spool fails or is
// closed first. Then the body can be pinned, and Await says when it is held. A
// small one may wait for others to share their sync with, 10 ms at most, until
// Hasten or Await is called.
func (s *Spool) PutThen(ref mail.BodyRef, b *mail.Body, done func(error)) (begun bool) {
	fail := func(err error) { done(fmt.Errorf("put body %s: %w", ref, err)) }
	switch {
	case s.Held(ref):
		done(nil)
		return true
	case ref.Size > BodyBytesMax:
		fail(ErrTooLarge)
		return false
	case b.Ref(ref.ID) != ref:
		// The body was hashed when it was received, and its checksum computed, which
		// the record gets. To read it again here would find only memory that changed
		// in between, and a read of the record finds that, too.
		fail(ErrMismatch)
		return false
	}
	j := newPut(ref, b)
	j.patient = true
	if j.body.payload.Len() != int64(ref.Size) {
		// Its memory was given back: whoever did that has not got it any more.
		fail(fmt.Errorf("%d octets: %w", j.body.payload.Len(), ErrMismatch))
		return false
	}
	if !s.expect(ref) {
		fail(ErrConflict)
		return false
	}
	j.done = func(err error) {
		s.came(ref.ID)
		if err != nil {
			fail(err)
			return
		}
		done(nil)
	}
	return s.begin(j)
}

// Hasten has the bodies that were given to PutThen written now: somebody is about to
// wait for them.
func (s *Spool) Hasten() { s.line.hasten() }

// Delete makes it durable that the doomed ones of these bodies are gone, and
// then frees the segments that nothing needs any more. Bodies that are not
// doomed, because they were spared or put again, are passed over. A nil error
// means that no restart brings back what was deleted.
func (s *Spool) Delete(refs []mail.BodyRef) error {
	if len(refs) == 0 {
		return nil
	}
	if err := s.do(&job{kind: jobDelete, deletes: refs}); err != nil {
		return fmt.Errorf("delete %d bodies: %w", len(refs), err)
	}
	return nil
}

// A job is something that waits for the writer.
type job struct {
	kind    jobKind
	patient bool // see line

	body    written        // of a Put
	copies  []written      // of a copy forward
	deletes []mail.BodyRef // of a Delete

	// done is called exactly once, mostly by the writer, which it must not hold up.
	done func(error)
}

type jobKind uint8

const (
	jobPut jobKind = iota
	jobDelete
	jobCopy
)

// A written is a body that is to be written, and then where.
type written struct {
	ref     mail.BodyRef
	payload segment.Payload
	// from is where the body lies that is copied forward.
	from segment.Place
	at   segment.Place
}

// rank orders bodies that are written together.
func (b *written) rank() int {
	if b.payload.Len() >= segment.LargeBytesMin {
		return 0
	}
	return 1
}

func newPut(ref mail.BodyRef, b *mail.Body) *job {
	return &job{body: written{ref: ref, payload: segment.NewPayloadSummed(uint32(b.Checksum()), b.Chunks()...)}}
}

// size is what the job adds to a batch.
func (j *job) size() (n int64) {
	n = j.body.payload.Len()
	for _, c := range j.copies {
		n += c.payload.Len()
	}
	return n
}

// do has the writer do j, and returns its answer.
func (s *Spool) do(j *job) error {
	done := make(chan error, 1)
	j.done = func(err error) { done <- err }
	s.begin(j)
	return <-done
}

// begin gives j to the writer, which answers every job that it was given. False
// means that it was not.
func (s *Spool) begin(j *job) bool {
	select {
	case <-s.failed:
		j.done(s.Err())
		return false
	default:
	}
	if !s.line.join(j) {
		j.done(ErrClosed)
		return false
	}
	return true
}
