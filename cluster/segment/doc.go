// Package segment keeps records in a directory of append-only files. It is what
// the spool of bodies and the log of Raft have in common: checksums, group
// commit, files that were written before they are needed, and the repair of what
// a crash left behind.
//
// What it promises. When Sync returns nil, every record appended before is on
// stable storage, and Open delivers it again, whatever happens to the power.
// When Free returns nil, no restart brings back a record of those segments. A
// record is delivered with the label, the length and the place that it was
// written with, or not at all; Read returns its payload as it was written, or
// an error.
//
// What it assumes. An fsync that returns nil has done its work; a sector of 512
// bytes holds old or new bytes after a power failure; a write that puts back the
// bytes that are there already harms nothing, even when the power fails in the
// middle of it; nobody else writes in the directory (a lock refuses a second
// process).
//
// What it refuses. After the first error of a write, a sync or a change of a
// name nothing more is written: the error is latched, and everything that would
// write returns it. Only the pool's own files are excepted: nobody was ever told
// of anything in them.
//
// A Set is a plain, synchronous writer: one goroutine at a time calls Append,
// Sync, Roll, Free and Close. The owner brings the goroutine, decides what waits
// for which Sync, and knows which segments are still needed. Readers, Prewrite
// and Stats may be used from any goroutine beside it.
//
// DESIGN.md beside this file draws the format byte by byte and goes through
// every crash.
package segment
