// Package spool keeps the bodies of messages on this node's disk, in the
// append-only, checksummed segments of cluster/segment.
//
// What it promises. When Put returns nil, the body is on stable storage, and a
// restart finds it, whatever happens to the power. When Delete returns nil, a
// restart does not bring the body back. No octet is ever served as part of a
// body whose size and SHA-256 it does not match: a reader fails before the end
// of a damaged body, never after it. A body that is pinned is not deleted.
//
// What it assumes. An fsync that returns nil has done its work; a write that
// puts back the bytes that are there already harms nothing, even when the power
// fails in the middle of it; nobody else writes in the directory (a lock
// refuses a second process).
//
// Room comes back by itself: segments that nothing needs go, and bodies that keep
// a nearly empty one are copied forward in the background.
//
// What it refuses. After the first error of a write, an fsync or an unlink
// nothing more is written: the error is latched (Failed, Err), every later Put
// and Delete returns it, and the process is expected to end. Nothing is
// retried on the same file, since after a failed fsync the kernel may call
// pages clean that never reached the disk.
//
// The spool knows nothing of the queue. Which bodies are still needed is the
// caller's decision, in the order of docs/architecture.md, "The append rule": Doom
// those that nobody needs, make the floor durable, Delete, or Spare what turned
// out to be needed.
//
// All methods are safe for concurrent use. One goroutine writes, and one keeps
// house; both end with Close. DESIGN.md beside this file draws the format byte by
// byte and goes through every crash.
package spool
