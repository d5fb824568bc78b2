package datadir

import (
	"path"
	"slices"
	"strings"
)

// A Kind is a kind of file that a data directory holds.
type Kind string

// The kinds of files in a data directory.
const (
	BodySegment   Kind = "segment of bodies"
	BodyPool      Kind = "segment of bodies, to be used"
	BodyFormat1   Kind = "segment of the spool's first format, being taken over"
	LogSegment    Kind = "segment of the log"
	LogPool       Kind = "segment of the log, to be used"
	LogName       Kind = "name of the log"
	StableStore   Kind = "raft.db"
	StableDraft   Kind = "raft.db, being made"
	SnapshotMeta  Kind = "metadata of a snapshot"
	SnapshotState Kind = "state of a snapshot"
	SnapshotDraft Kind = "snapshot, being made"
	Lock          Kind = "lock"
	PeersFile     Kind = "peers"
	PeersDraft    Kind = "peers, being made"
)

// patterns are the names of each kind, by path.Match, in the order in which they are
// tried: a draft is no snapshot.
var patterns = []struct {
	kind    Kind
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

// Kinds lists all kinds.
func Kinds() []Kind {
	var all []Kind
	for _, p := range patterns {
		if !slices.Contains(all, p.kind) {
			all = append(all, p.kind)
		}
	}
	return all
}

// KindOf returns what kind of file that is, by its path in the data directory
// with slashes, and false for one that no node should have.
func KindOf(name string) (Kind, bool) {
	for _, p := range patterns {
		if ok, _ := path.Match(p.pattern, strings.TrimPrefix(name, "./")); ok {
			return p.kind, true
		}
	}
	return "", false
}
