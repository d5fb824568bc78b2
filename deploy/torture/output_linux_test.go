package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Two runs do not write to one directory; who comes after another finds it empty.
func TestOccupy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seed-1")
	leave, err := occupy(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "report.html"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := occupy(dir); err == nil {
		t.Error("two runs at once")
	}
	if _, err := os.Stat(filepath.Join(dir, "report.html")); err != nil {
		t.Errorf("what the first run wrote is gone: %v", err)
	}
	leave()
	if leave, err = occupy(dir); err != nil {
		t.Fatal(err)
	}
	defer leave()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != ownMark {
		t.Errorf("left: %v, %v", left, err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := occupy(other); err == nil {
		t.Error("a directory of somebody else's is taken")
	}
	if _, err := os.Stat(filepath.Join(other, "thesis.tex")); err != nil {
		t.Error(err)
	}
}
