package rival

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSlowSync: fsync and fdatasync of a preloaded process, here sync(1), take as
// long as they were told to, and still succeed and fail as they do.
func TestSlowSync(t *testing.T) {
	for _, need := range []string{"gcc", "sync"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skip(err)
		}
	}
	const delay = 700 * time.Millisecond
	dir := t.TempDir()
	environment, err := SlowSync(t.Context(), dir, delay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		fails bool
	}{{[]string{file}, false}, {[]string{"--data", file}, false}, {[]string{"/dev/null"}, true}} {
		cmd := exec.CommandContext(t.Context(), "sync", c.args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		for name, value := range environment {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		begin := time.Now()
		out, err := cmd.CombinedOutput()
		if took := time.Since(begin); took < delay {
			t.Errorf("sync %q took %v", c.args, took)
		}
		if (err != nil) != c.fails || c.fails && !strings.Contains(string(out), "Invalid argument") {
			t.Errorf("sync %q: %v: %s", c.args, err, out)
		}
	}
	if _, err := SlowSync(t.Context(), filepath.Join(dir, "absent"), delay); err == nil {
		t.Error("a library was made in a directory that does not exist")
	}
}
