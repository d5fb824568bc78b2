package consensus

import (
	"reflect"

	"github.com/hashicorp/raft"
)

// endWith makes a future of the library end when done is closed. Futures of
// entries have a ShutdownCh for that, but Raft leaves it nil, and an entry that
// was committed and queued for the FSM when Raft shut down is never answered
// (fsm.go:254): whoever waits for it would wait for ever.
//
// The field is only read by Error, in the goroutine that calls it, so it may
// be set between the call that made the future and the first call of Error.
// It reports false for a future that has no such field: those of errors, which
// never wait.
func endWith(f raft.Future, done chan struct{}) bool {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return false
	}
	field := v.Elem().FieldByName("ShutdownCh")
	if !field.IsValid() || !field.CanSet() || field.Type() != reflect.TypeOf(done) {
		return false
	}
	field.Set(reflect.ValueOf(done))
	return true
}
