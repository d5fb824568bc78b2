package clustertest

import (
	"path/filepath"
	"slices"
	"time"
)

// An Op is a kind of disk operation.
type Op uint8

// The operations of a Disk. OpAny, in a Fault, is any that changes the disk or
// makes a change durable.
const (
	OpAny Op = iota
	OpMkdir
	OpReadDir
	OpCreate
	OpOpen
	OpRead
	OpWrite
	OpTruncate
	OpSync
	OpSize
	OpRename
	OpRemove
	OpSyncDir
	OpLock
	// OpCrash and OpNote are only in traces: a power failure, and what Note said.
	OpCrash
	OpNote
)

func (o Op) String() string {
	names := [...]string{"any", "mkdir", "readdir", "create", "open", "read", "write", "truncate", "sync", "size", "rename", "remove", "syncdir", "lock", "crash", "note"}
	return names[o]
}

// changes reports whether OpAny means o.
func (o Op) changes() bool {
	switch o {
	case OpCreate, OpWrite, OpTruncate, OpSync, OpRename, OpRemove, OpSyncDir:
		return true
	default:
		return false
	}
}

// A Fault is something that goes wrong with an operation to come.
type Fault struct {
	Op   Op     // which kind; OpAny for any that changes the disk
	Name string // only files whose last path element matches it (path.Match); "" is any
	// Skip lets that many matching operations pass first.
	Skip int
	// Forever hits all later ones too, until the fault is lifted.
	Forever bool

	// Err is what the operation returns. A failed Sync has written some of the
	// file's unsynced changes, and forgets the others for good.
	Err error
	// Short writes the first half only, and fails.
	Short bool
	// Delay passes before the operation has its effect, by the time package.
	Delay time.Duration
	// Crash cuts the power at this operation, which, as all later ones, returns
	// ErrKilled. A write or a change of a name may or may not get to the disk; a
	// sync is not done. Call Crash before the next Mount; without it, the process
	// was only killed.
	Crash bool
	// Struck, where it is given, gets a value when the fault hits, if there is room.
	Struck chan<- struct{}
}

type fault struct{ Fault }

func (f *fault) err() error {
	if f == nil {
		return nil
	}
	return f.Err
}

func (f *fault) crashes() bool { return f != nil && f.Crash }

// Inject arms a fault. lift takes it back. One operation is hit by at most one
// fault, the one that was armed first.
func (d *Disk) Inject(f Fault) (lift func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	armed := &fault{f}
	d.faults = append(d.faults, armed)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.faults = slices.DeleteFunc(d.faults, func(f *fault) bool { return f == armed })
	}
}

// SetLatency makes each operation take that long, by the time package; nil is
// no time at all.
func (d *Disk) SetLatency(latency func(Op) time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latency = latency
}

// An Event is an operation that had its effect, or failed.
type Event struct {
	Op     Op
	Name   string // of a note, its text
	Was    string // the name before, of a rename
	Bytes  int
	Failed bool
}

// Trace turns recording on, or off, and returns what was recorded before.
func (d *Disk) Trace(on bool) []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.trace
	d.trace, d.tracing = nil, on
	return t
}

// Note puts a remark in the trace.
func (d *Disk) Note(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.traceLocked(Event{Op: OpNote, Name: text})
}

func (d *Disk) traceLocked(e Event) {
	if d.tracing {
		d.trace = append(d.trace, e)
	}
}

// Count returns how many operations of that kind there were; OpAny is all that
// change the disk.
func (d *Disk) Count(op Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[op]
}

// enterLocked counts an operation and finds its fault and its duration.
func (d *Disk) enterLocked(op Op, name string) (hit *fault, delay time.Duration) {
	d.counts[op]++
	if op.changes() {
		d.counts[OpAny]++
	}
	if d.latency != nil {
		delay = d.latency(op)
	}
	for i, f := range d.faults {
		if f.Op != op && (f.Op != OpAny || !op.changes()) {
			continue
		}
		if ok, _ := filepath.Match(f.Name, filepath.Base(name)); f.Name != "" && !ok {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		select {
		case f.Struck <- struct{}{}:
		default:
		}
		if !f.Forever {
			d.faults = slices.Delete(d.faults, i, i+1)
		}
		return f, delay + f.Delay
	}
	return nil, delay
}
