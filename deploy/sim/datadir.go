package sim

import (
	"path"
	"strings"
)

// A FileKind is a kind of file that a data directory holds.
type FileKind string

// The kinds of files in a data directory.
const (
	BodySegment   FileKind = "segment of bodies"
	BodyPool      FileKind = "segment of bodies, to be used"
	BodyFormat1   FileKind = "segment of the spool's first format, being taken over"
	LogSegment    FileKind = "segment of the log"
	LogPool       FileKind = "segment of the log, to be used"
	LogName       FileKind = "name of the log"
	StableStore   FileKind = "raft.db"
	StableDraft   FileKind = "raft.db, being made"
	SnapshotMeta  FileKind = "metadata of a snapshot"
	SnapshotState FileKind = "state of a snapshot"
	SnapshotDraft FileKind = "snapshot, being made"
	Lock          FileKind = "lock"
	PeersFile     FileKind = "peers"
	PeersDraft    FileKind = "peers, being made"
)

// fileKinds gives the names, in the order in which they are tried.
var fileKinds = []struct {
	kind    FileKind
	pattern string
}{
	{Lock, "spool/LOCK"}, {Lock, "raft/LOCK"}, {Lock, "raft/log/LOCK"},
	{BodySegment, "spool/*.seg"}, {BodyPool, "spool/*.free"}, {BodyFormat1, "spool/*.old"},
	{LogSegment, "raft/log/*.seg"}, {LogPool, "raft/log/*.free"}, {LogName, "raft/log/ID"},
	{StableStore, "raft/raft.db"}, {StableDraft, "raft/raft.db.new"},
	{SnapshotDraft, "raft/snapshots/*.tmp/*"},
	{SnapshotMeta, "raft/snapshots/*/meta.json"}, {SnapshotState, "raft/snapshots/*/state.bin"},
	{PeersDraft, "peers.*"}, {PeersFile, "peers"},
}

// KindOf returns what kind of file that is, by its path in the data directory
// with slashes, and false for one that no node should have.
func KindOf(name string) (FileKind, bool) {
	for _, k := range fileKinds {
		if ok, _ := path.Match(k.pattern, strings.TrimPrefix(name, "./")); ok {
			return k.kind, true
		}
	}
	return "", false
}
