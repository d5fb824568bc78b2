package datadir

import "testing"

func TestKindOf(t *testing.T) {
	for name, want := range map[string]Kind{
		"spool/LOCK": Lock, "raft/LOCK": Lock, "raft/log/LOCK": Lock,
		"spool/0000000000000001.seg": BodySegment, "./spool/0000000000000001.seg": BodySegment,
		"spool/0000000000000002.free": BodyPool, "spool/00000001.old": BodyFormat1,
		"raft/log/0000000000000001.seg": LogSegment, "raft/log/0000000000000002.free": LogPool, "raft/log/ID": LogName,
		"raft/raft.db": StableStore, "raft/raft.db.new": StableDraft,
		"raft/snapshots/2-5-1/meta.json": SnapshotMeta, "raft/snapshots/2-5-1/state.bin": SnapshotState,
		"raft/snapshots/2-5-1.tmp/meta.json": SnapshotDraft, "raft/snapshots/2-5-1.tmp/state.bin": SnapshotDraft,
		"peers": PeersFile, "peers.123": PeersDraft,
	} {
		if got, ok := KindOf(name); !ok || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"", "epoch", "LOCK", "raft/raft.db2", "spool/00000001.idx", "spool/deep/00000001.seg", "raft/snapshots/2-5-1/extra"} {
		if k, ok := KindOf(name); ok {
			t.Errorf("%q is taken for %q", name, k)
		}
	}
}

func TestKinds(t *testing.T) {
	seen := map[Kind]bool{}
	for _, k := range Kinds() {
		if seen[k] || k == "" {
			t.Errorf("%q stands twice, or has no name", k)
		}
		seen[k] = true
	}
	if len(seen) != 14 {
		t.Errorf("%d kinds", len(seen))
	}
}
