//go:build controls

package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// TestBrokenRules: a node of this build breaks the rules that it is told to break, and
// no other, and none where it is told nothing.
func TestBrokenRules(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	if s := System(quiet); s.Controls != (controls.Set{}) {
		t.Errorf("told nothing, it breaks %+v", s.Controls)
	}
	for name, one := range controls.Names {
		t.Setenv(brokenRules, name)
		if s := System(quiet); s.Controls != controls.Of(one) {
			t.Errorf("told %q, it breaks %+v", name, s.Controls)
		}
	}
	t.Setenv(brokenRules, "gravity")
	defer func() {
		if recover() == nil {
			t.Error("it begins with a rule to break that it does not know")
		}
	}()
	System(quiet)
}

// TestBrokenSync: where fsync is removed, neither bodies nor the log are synced, and
// both can be used.
func TestBrokenSync(t *testing.T) {
	t.Setenv(brokenRules, "fsync removed")
	s := System(slog.New(slog.DiscardHandler))
	if _, ok := s.Spool.(unsyncedFS); !ok {
		t.Errorf("bodies lie on %T", s.Spool)
	}
	f, err := s.Spool.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := f.(unsyncedFile); !ok {
		t.Errorf("a body lies in %T", f)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Spool.OpenWrite(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
	stores, err := s.Stores(filepath.Join(t.TempDir(), "raft"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stores.Close(); err != nil {
		t.Error(err)
	}
}
