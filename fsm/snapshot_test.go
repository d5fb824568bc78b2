package fsm

import (
	"reflect"
	"testing"
)

// TestSnapshotCopiesEveryTree: a tree that both share would change in one when
// the other is written, and race with its readers.
func TestSnapshotCopiesEveryTree(t *testing.T) {
	s := New()
	a, b := reflect.ValueOf(*s), reflect.ValueOf(*s.Snapshot())
	trees := 0
	for i := range a.NumField() {
		if a.Field(i).Kind() != reflect.Struct || !a.Field(i).FieldByName("items").IsValid() {
			continue
		}
		trees++
		if a.Field(i).FieldByName("items").Pointer() == b.Field(i).FieldByName("items").Pointer() {
			t.Errorf("the tree %s is shared", a.Type().Field(i).Name)
		}
	}
	if trees < 10 {
		t.Errorf("%d trees found", trees)
	}
}
