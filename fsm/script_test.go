package fsm_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata give now; read the diff")

// TestScripts runs testdata/*.txt: the table of commands row by row, and the
// stories of races.
func TestScripts(t *testing.T) {
	for _, path := range scripts(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := fsmtest.NewScript(nil).Run(string(want))
			if err != nil {
				t.Fatalf("%v, after\n%s", err, got)
			}
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func scripts(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	return paths
}

// TestScriptControls takes rules away: the script that tells the rule's story
// must then give something else.
func TestScriptControls(t *testing.T) {
	for rule, path := range map[string]string{
		"match only what lives": "story04-repeat-of-a-removed-message.txt",
		"settle":                "story06-two-identical-messages.txt",
		"settle before match":   "story06-two-identical-messages.txt",
		"guard on expire":       "story11-expire-of-a-renewed-lease.txt",
		"check at grant":        "story10-grant-over-a-changed-message.txt",
		"fence":                 "story14-report-under-an-ended-lease.txt",
		"hold keeps the lease":  "story13-hold-and-release-within-a-lease.txt",
	} {
		t.Run(rule, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join("testdata", path))
			if err != nil {
				t.Fatal(err)
			}
			got, err := fsmtest.NewScript(func(s *fsm.State) { s.Waive(rule) }).Run(string(want))
			if err == nil && got == string(want) {
				t.Errorf("%s does not miss the rule", path)
			}
		})
	}
}
