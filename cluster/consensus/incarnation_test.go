package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
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
func TestLostLogMeansANewIncarnation(t *testing.T) {
	dir := t.TempDir()
	first, err := incarnationOf(t, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := incarnationOf(t, dir, 2); err != nil || again != first {
		t.Fatalf("after a restart %q, %v; want %q", again, err, first)
	}
	drawn := byte(2)
	for name, lose := range map[string]func(string) error{
		"removed": os.Remove,
		"emptied": func(file string) error { return os.Truncate(file, 0) },
	} {
		if err := lose(filepath.Join(dir, logFile)); err != nil {
			t.Fatal(err)
		}
		drawn++
		fresh, err := incarnationOf(t, dir, drawn)
		if err != nil {
			t.Fatal(err)
		}
		if fresh == first {
			t.Errorf("log %s: the old incarnation came back", name)
		}
		first = fresh
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
