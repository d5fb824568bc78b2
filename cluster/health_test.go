package cluster

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/peer"
)

// A node is complete only when it has applied as much as we had, knows that it
// lacks nothing, and still says so.
func TestConditions(t *testing.T) {
	var c conditions
	away := errors.New("away")
	whole := peer.Hydration{Known: true}
	for _, test := range []struct {
		name string
		said peer.Health
		want bool
	}{
		{"good", peer.Health{ServerID: "good/1", Applied: 10, Hydration: whole}, true},
		{"behind", peer.Health{ServerID: "behind/1", Applied: 9, Hydration: whole}, false},
		{"lacking", peer.Health{ServerID: "lacking/1", Applied: 10, Hydration: peer.Hydration{Known: true, Missing: 1}}, false},
		{"starting", peer.Health{ServerID: "starting/1", Applied: 10}, false},
	} {
		if at := c.asking(test.name, 10); at != 10 {
			t.Errorf("%s has to have applied %d at once", test.name, at)
		}
		at := c.asking(test.name, 20)
		c.note(test.name, test.said, nil, at)
		if got := c.list()[test.name]; got.Complete != test.want || got.Health != test.said || got.Err != nil || got.At.IsZero() {
			t.Errorf("%+v", got)
		}
		c.note(test.name, peer.Health{}, away, 0)
		if got := c.list()[test.name]; got.Complete || got.Health != test.said || !errors.Is(got.Err, away) || got.At.IsZero() {
			t.Errorf("silent: %+v", got)
		}
	}
	c.keep([]string{"behind"})
	if got := c.list(); len(got) != 1 || got["behind"].ServerID != "behind/1" {
		t.Errorf("kept %+v", got)
	}
	if at := c.asking("good", 30); at != 30 {
		t.Errorf("somebody who was gone has to have applied %d", at)
	}
}
