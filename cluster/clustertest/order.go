package clustertest

import (
	"fmt"
	"path/filepath"
)

// Order holds a trace to the order in which files must be made, named and given
// up, whatever a crash would make of it. Lasting says of a name's last element
// whether a file of that name is relied upon after a restart. For such files:
//
//   - a file gets its name when all that was written to it is synced, and it is
//     not written to before the directory is synced too;
//   - before a file gets its name, the lasting files before it are synced;
//   - a file that has lost its name is not written to before the directory is
//     synced;
//   - at a note Acknowledged nothing of a lasting file waits for a sync, neither
//     octets nor names.
//
// A crash makes everything durable or gone, and is noted as such.
type Order struct{ Lasting func(base string) bool }

// Acknowledged is the note of a workload that a promise was given.
const Acknowledged = "acknowledged"

// An ordered is what Order knows of one file.
type ordered struct {
	dirty   bool // has octets that no sync covers
	unnamed bool // has changed its name since the last sync of the directory
	gaveUp  bool // one that was lasting, at that
}

// Check returns an error that names the first operation out of order.
func (o Order) Check(events []Event) error {
	files := make(map[string]*ordered)
	get := func(name string) *ordered {
		f := files[name]
		if f == nil {
			f = new(ordered)
			files[name] = f
		}
		return f
	}
	lasting := func(name string) bool { return o.Lasting(filepath.Base(name)) }
	for i, e := range events {
		fail := func(what string) error {
			return fmt.Errorf("operation %d, %s %s: %s", i, e.Op, e.Name, what)
		}
		f := get(e.Name)
		if e.Failed && e.Op != OpWrite && e.Op != OpTruncate {
			continue // whatever it did will have to be done again
		}
		switch e.Op {
		case OpCreate:
			*f = ordered{unnamed: true}
		case OpWrite, OpTruncate:
			if f.unnamed && lasting(e.Name) || f.gaveUp {
				return fail("written to before the directory is synced")
			}
			f.dirty = true
		case OpSync:
			f.dirty = false
		case OpRename:
			if lasting(e.Name) {
				if get(e.Was).dirty {
					return fail("gets its name before it is synced")
				}
				for name, other := range files {
					if name != e.Was && other.dirty && lasting(name) {
						return fail("gets its name while " + name + " is not synced")
					}
				}
			}
			files[e.Name] = get(e.Was)
			delete(files, e.Was)
			files[e.Name].unnamed = true
			files[e.Name].gaveUp = lasting(e.Was)
		case OpRemove:
			delete(files, e.Name)
		case OpSyncDir:
			for _, f := range files {
				f.unnamed, f.gaveUp = false, false
			}
		case OpNote:
			if e.Name != Acknowledged {
				continue
			}
			for name, f := range files {
				if lasting(name) && (f.dirty || f.unnamed) {
					return fail(fmt.Sprintf("%s is not durable (octets %v, name %v)", name, !f.dirty, !f.unnamed))
				}
			}
		case OpCrash:
			clear(files)
		}
	}
	return nil
}
