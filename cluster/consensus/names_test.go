package consensus

import (
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestNames compares the index with a map, through random writes, truncations
// and compactions, and with what a scan of the store finds.
func TestNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := raft.NewInmemStore()
		s := &logStore{store: store, latch: newLatch()}
		twin := make(map[uint64]mail.BodyRef)
		first, last := uint64(1), uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"store": func(t *rapid.T) {
				var logs []*raft.Log
				for range rapid.IntRange(1, 5).Draw(t, "entries") {
					last++
					l := &raft.Log{Index: last, Type: raft.LogCommand}
					if rapid.Bool().Draw(t, "named") {
						ref := mail.NewBody(nil).Ref(mail.QueueID{byte(last), byte(rapid.IntRange(0, 3).Draw(t, "id"))})
						l.Extensions = ref.Encode()
						twin[last] = ref
					}
					logs = append(logs, l)
				}
				if err := s.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			},
			"truncate": func(t *rapid.T) {
				if last < first {
					t.Skip()
				}
				from := rapid.Uint64Range(first, last).Draw(t, "from")
				if err := s.DeleteRange(from, last); err != nil {
					t.Fatal(err)
				}
				for i := from; i <= last; i++ {
					delete(twin, i)
				}
				last = from - 1
			},
			"compact": func(t *rapid.T) {
				if last <= first {
					t.Skip()
				}
				to := rapid.Uint64Range(first, last-1).Draw(t, "to")
				if err := s.DeleteRange(first, to); err != nil {
					t.Fatal(err)
				}
				for i := first; i <= to; i++ {
					delete(twin, i)
				}
				first = to + 1
			},
			"": func(t *rapid.T) {
				above := rapid.Uint64Range(0, last+2).Draw(t, "above")
				var want []namedBody
				for i := above + 1; i <= last; i++ {
					if ref, ok := twin[i]; ok {
						want = append(want, namedBody{i, ref})
					}
				}
				if got := s.names.above(above); !slices.Equal(got, want) {
					t.Fatalf("above %d: %v, want %v", above, got, want)
				}
				var anew names
				if last >= first {
					if _, err := anew.scan(store, 0, nil); err != nil {
						t.Fatal(err)
					}
				}
				if !slices.Equal(anew.above(0), s.names.above(0)) {
					t.Fatalf("a scan finds %v, the index has %v", anew.above(0), s.names.above(0))
				}
				for _, b := range s.names.above(0) {
					if !s.names.has(b) {
						t.Fatalf("has not %v", b)
					}
				}
			},
		})
	})
	if got := (&names{}).above(^uint64(0)); got != nil {
		t.Errorf("above everything: %v", got)
	}
	n := &names{entries: []namedBody{{index: 1}, {index: 7}}}
	n.drop(2, ^uint64(0))
	if len(n.entries) != 1 || n.has(namedBody{index: 7}) {
		t.Errorf("after dropping all from 2: %v", n.entries)
	}
}
