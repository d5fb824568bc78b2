package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

func incarnationOf(t *testing.T, dir string, random byte) (string, error) {
	t.Helper()
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.Incarnation(bytes.NewReader(bytes.Repeat([]byte{random}, incarnationBytes)))
}

// A member that lost its log and votes must not come back under the server id
// that gave the votes: it would elect a leader without the entries that it once
// acknowledged, and acknowledged mail would be gone.
//
// It holds this defect: a node that had lost raft.db came back as the same voter without
// its log, elected a node that had missed acknowledged mail, and the mail was gone.
func TestRegressionLostLogMeansANewIncarnation(t *testing.T) {
	dir := t.TempDir()
	first, err := incarnationOf(t, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := incarnationOf(t, dir, 2); err != nil || again != first {
		t.Fatalf("after a restart %q, %v; want %q", again, err, first)
	}
	file := filepath.Join(dir, logFile)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	second, err := incarnationOf(t, dir, 3)
	if err != nil {
		t.Fatal(err)
	}
	if second == first {
		t.Error("the old incarnation came back")
	}
	// An empty file is no file that was never there.
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	if s, err := OpenStores(dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("emptied: %v", err)
		_ = s.Close()
	}
}

// TestSnapshotsWithoutLogAreRefused: what is left of another life is not ours.
func TestSnapshotsWithoutLogAreRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := s.Snapshots.Create(raft.SnapshotVersionMax, 5, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sink.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := incarnationOf(t, dir, 1); !errors.Is(err, ErrNoIncarnation) || !errors.Is(err, ErrDamaged) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStateWithoutIncarnationIsRefused(t *testing.T) {
	for name, give := range map[string]func(Stores) error{
		"a term":  func(s Stores) error { return s.Stable.SetUint64([]byte("CurrentTerm"), 3) },
		"a floor": func(s Stores) error { return s.Stable.SetUint64(floorKey, 3) },
	} {
		dir := t.TempDir()
		s, err := OpenStores(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(give(s), s.Close()); err != nil {
			t.Fatal(err)
		}
		if got, err := incarnationOf(t, dir, 1); !errors.Is(err, ErrNoIncarnation) {
			t.Errorf("%s: %q, %v; want ErrNoIncarnation", name, got, err)
		}
	}
}
