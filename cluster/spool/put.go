package spool

import (
	"crypto/sha256"
	"fmt"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Put stores a body, given as its octets in order. When it returns nil, the
// body is on stable storage; bodies that wait at the same time share one sync.
// The chunks are the caller's again when Put returns.
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
func (s *Spool) Put(ref mail.BodyRef, chunks [][]byte) error {
	if s.Held(ref) {
		return nil
	}
	if ref.Size > BodyBytesMax {
		return fmt.Errorf("put body %s: %w", ref, ErrTooLarge)
	}
	j := &job{ref: ref, chunks: chunks, done: make(chan error, 1)}
	var size mail.ByteSize
	sum := sha256.New()
	for _, c := range chunks {
		size += mail.ByteSize(len(c))
		sum.Write(c)
		j.crc = extendChecksum(j.crc, c)
	}
	if size != ref.Size || mail.Digest(sum.Sum(nil)) != ref.Digest {
		return fmt.Errorf("put body %s: %w", ref, ErrMismatch)
	}
	if err := s.do(j); err != nil {
		return fmt.Errorf("put body %s: %w", ref, err)
	}
	return nil
}

// Delete makes it durable that the doomed ones of these bodies are gone, and
// then removes the segments that nothing needs any more. Bodies that are not
// doomed, because they were spared or put again, are passed over. A nil error
// means that no restart brings back what was deleted.
func (s *Spool) Delete(refs []mail.BodyRef) error {
	if len(refs) == 0 {
		return nil
	}
	if err := s.do(&job{deletes: refs, done: make(chan error, 1)}); err != nil {
		return fmt.Errorf("delete %d bodies: %w", len(refs), err)
	}
	return nil
}

// A job is one Put or one Delete that waits for the writer.
type job struct {
	ref    mail.BodyRef
	chunks [][]byte
	crc    uint32

	deletes []mail.BodyRef // a Delete, if not empty

	done chan error // gets exactly one answer once the writer has the job
}

// do gives j to the writer and waits for its answer. The writer answers every
// job that it has taken.
func (s *Spool) do(j *job) error {
	select {
	case <-s.stop: // a writer that is about to end may still win the race below
		return ErrClosed
	case <-s.failed:
		return s.Err()
	default:
	}
	select {
	case s.jobs <- j:
		return <-j.done
	case <-s.stop:
		return ErrClosed
	case <-s.failed:
		return s.Err()
	}
}
