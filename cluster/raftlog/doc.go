// Package raftlog keeps the entries of a Raft log in segment files: a run of
// octet strings, each under an index and a term, that grows at the end and is cut
// at either end. It does not know Raft; cluster/consensus makes a LogStore of it.
//
// What it promises. When Append or Delete returns nil, what it did is on stable
// storage. Open finds exactly that again, or more of what was under way when the
// power failed. An entry is read as it was written, or reading it fails: one that
// was durable and cannot be read is never taken for one that was never there.
//
// What it assumes is what cluster/segment assumes.
//
// What it refuses. A directory in which something durable is damaged is not
// opened, nor one in which an entry is missing between two others: a member whose
// log lost an entry that it acknowledged must not go on under its name. After the
// first failed write nothing more is written.
//
// Records, in the format of cluster/segment:
//
//	kind 1, entry     label: 0-7 index, 8-15 term   payload: the octets
//	kind 2, deletion  label: 0-7 lowest, 8-15 highest index deleted   no payload
//	kind 3, next      as kind 1, for an entry that was appended in one batch with
//	                  the one before it
//
// Numbers are big endian. A deletion is about the records before it.
//
// What a torn write looks like: cluster/segment cuts or covers what is not whole.
// Of a batch whose sync did not return, a record may be whole while one before it
// is not. The records behind it in that batch are of kind 3, follow no entry, and
// count for nothing. An entry of kind 1 that follows none is damage: the one
// before it was durable when it was written.
package raftlog
