package spool_test

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A story of two crashes. The process is killed after it has unlinked the
// segment of a deleted body, before the directory is synced. Its successor does
// not see the segment, takes the tombstone for needless, unlinks the file that
// it is in, and the power fails: that unlink got to the disk, the first did not.
// So the successor must begin with a sync of what it sees.
func TestUnlinkedSegmentDoesNotComeBackWithoutItsTombstone(t *testing.T) {
	killed := 0
	for seed := range uint64(50) {
		disk := clustertest.NewDisk(seed)
		o := spool.Options{SegmentBytes: 16 * mail.KiB}
		s := open(t, disk.Mount(), o)
		ref, beside := put(t, s, 0, 3000), put(t, s, 1, 3000)
		behind := put(t, s, 2, 6000) // in the segment that gets the tombstones
		remove(t, s, ref)
		disk.Inject(clustertest.Fault{Op: clustertest.OpSyncDir, Crash: true})
		if err := s.Delete(s.Doom([]mail.QueueID{beside.ID, behind.ID})); !errors.Is(err, clustertest.ErrKilled) {
			t.Fatalf("delete: %v", err)
		}
		_ = s.Close()

		disk.Inject(clustertest.Fault{Op: clustertest.OpRemove, Crash: true})
		if s, err := spool.Open(disk.Mount(), dir, o); err == nil {
			_ = s.Close()
		} else {
			killed++
		}
		disk.Crash()
		s = open(t, disk.Mount(), o)
		if s.Held(ref) {
			t.Fatalf("seed %d: the deleted body is back", seed)
		}
		_ = s.Close()
	}
	if killed == 0 {
		t.Error("no successor unlinked anything")
	}
}
