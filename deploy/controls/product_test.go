//go:build !controls

package controls_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// behindSwitches are functions that only a switch calls.
var behindSwitches = []string{
	"/delivery.(*hop).bounce",
	"/cluster/dispatch.(*Dispatcher).followWallClock",
	"/cluster/consensus.(*pipelines).add",
	"/deploy/controls.Parse",
	"/cmd/holdfastd/node.unsyncedFS.SyncDir",
}

// switchedBy is what a build with switches asks which of them are on.
const switchedBy = "HOLDFAST_CONTROLS"

// TestProductHasNoSwitch: in the product a Set has no room for a switch, and the
// binary has nothing of what stands behind one. A build with the tag has it all,
// or this test would be blind.
func TestProductHasNoSwitch(t *testing.T) {
	if n := unsafe.Sizeof(controls.Set{}); n != 0 {
		t.Errorf("a Set has %d octets", n)
	}
	product, asks := functions(t)
	if asks {
		t.Errorf("the product has the text %q", switchedBy)
	}
	broken, asks := functions(t, "-tags", "controls")
	if !asks {
		t.Errorf("the build with switches has no text %q: this test looks for something else", switchedBy)
	}
	for _, name := range behindSwitches {
		if has(product, name) {
			t.Errorf("the product has %s", name)
		}
		if !has(broken, name) {
			t.Errorf("the build with switches has no %s: this test looks for something else", name)
		}
	}
}

// functions builds the daemon, lists the functions in it, and reports whether it has
// the text of switchedBy.
func functions(t *testing.T, flags ...string) (names []string, asks bool) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "holdfastd")
	build := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", out}, flags...), "../../cmd/holdfastd")...)
	build.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	file, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			names = append(names, s.Name)
		}
	}
	octets, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return names, bytes.Contains(octets, []byte(switchedBy))
}

func has(names []string, suffix string) bool {
	for _, name := range names {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}
