package spool

import (
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A job that gets to the writer after the failure, since it won the race against
// the closing of Failed, is refused there too.
func TestWriterRefusesAfterAFailure(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(vfs.OS(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := mail.NewBody([]byte("octets"))
	broken := errors.New("broken")
	if err := s.fail(broken); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	j := newPut(b.Ref(mail.QueueID{1}), b)
	answer := make(chan error, 1)
	j.done = func(err error) { answer <- err }
	s.line.join(j)
	if err := <-answer; !errors.Is(err, broken) {
		t.Errorf("put: %v", err)
	}
	if err := s.fail(errors.New("another")); !errors.Is(err, broken) {
		t.Errorf("the first error is not the one that stays: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	names, err := vfs.OS().ReadDir(dir)
	if err != nil || !slices.Equal(names, []string{lockName}) {
		t.Errorf("written after the failure: %v, %v", names, err)
	}
}
