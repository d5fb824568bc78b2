package fsm

import (
	"reflect"
	"testing"
)

// TestSnapshotCopiesEveryTree: a tree that both share would change in one when
// the other is written, and race with its readers.
func TestSnapshotCopiesEveryTree(t *testing.T) {
	s := New()
	var trees func(v reflect.Value) map[string]uintptr
	trees = func(v reflect.Value) map[string]uintptr {
		found := make(map[string]uintptr)
		for i := range v.NumField() {
			name, f := v.Type().Field(i).Name, v.Field(i)
			if f.Kind() != reflect.Struct {
				continue
			}
			if items := f.FieldByName("items"); items.IsValid() {
				found[name], found[name+"'s hint"] = items.Pointer(), f.FieldByName("written").Pointer()
				continue
			}
			for inner, items := range trees(f) {
				found[name+"."+inner] = items
			}
		}
		return found
	}
	ours, theirs := trees(reflect.ValueOf(*s)), trees(reflect.ValueOf(*s.Snapshot()))
	for name, items := range ours {
		if theirs[name] == items {
			t.Errorf("the tree %s is shared", name)
		}
	}
	if len(ours) < 30 || ours["sealed.full"] == 0 {
		t.Errorf("%d trees found: %v", len(ours), ours)
	}
}
