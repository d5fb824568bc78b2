package spool_test

import (
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestWalk: a walk yields what stays exactly once, and never what is gone, while
// bodies come and go between its steps, and the map behind it grows.
func TestWalk(t *testing.T) {
	s := open(t, clustertest.NewDisk(1).Mount(), spool.Options{SegmentBytes: 1 << 20})
	const bodies = 1000
	var refs []mail.BodyRef
	for n := range bodies {
		refs = append(refs, put(t, s, n, 1))
	}
	doomed := s.Doom(ids(refs[:10]))
	seen := make(map[mail.QueueID]int)
	gone := make(map[mail.QueueID]int) // after how many were yielded
	more := bodies
	for b := range s.Walk() {
		seen[b.Ref.ID]++
		if at, ok := gone[b.Ref.ID]; ok && len(seen) > at+256 {
			t.Fatalf("%s is yielded more than a step after it went", b.Ref.ID)
		}
		if len(seen)%100 == 0 { // the lock is free, and the map changes
			at := 500 + len(seen)/100
			remove(t, s, refs[at])
			gone[refs[at].ID] = len(seen)
			for range 20 {
				put(t, s, more, 1)
				more++
			}
		}
	}
	for n, ref := range refs {
		want := 1
		if slices.Contains(doomed, ref) {
			want = 0
		}
		_, went := gone[ref.ID]
		if got := seen[ref.ID]; got != want && !(went && got == 0) {
			t.Errorf("body %d is yielded %d times, want %d", n, got, want)
		}
	}
	for id, n := range seen {
		if n > 1 {
			t.Errorf("%s is yielded %d times", id, n)
		}
	}
	if len(gone) < 5 || len(seen) < bodies-10-len(gone) {
		t.Errorf("%d yielded, %d gone", len(seen), len(gone))
	}
	for range s.Walk() { // it may be left
		break
	}
	put(t, s, more, 1)
	release, _ := s.Pin(refs[20])
	if got := s.Pinned(ids(refs)); !slices.Equal(got, ids(refs[20:21])) {
		t.Errorf("pinned: %v", got)
	}
	release()
	if got := s.Pinned(ids(refs)); len(got) != 0 {
		t.Errorf("pinned: %v", got)
	}
}
