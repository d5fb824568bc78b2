package fsm_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var writeFixture = flag.String("fixture", "", "write testdata/snapshots/`NAME`.bin and NAME.txt in the newest version")

// TestSnapshotsOfOlderVersions: what an older version wrote is read as what it
// was. Beside each snapshot lies what the version that wrote it said of it.
// Neither is ever made again; fields that are new since may be written into the
// text.
func TestSnapshotsOfOlderVersions(t *testing.T) {
	const dir = "testdata/snapshots"
	if *writeFixture != "" {
		s := busy(t)
		name := filepath.Join(dir, *writeFixture)
		if err := os.WriteFile(name+".bin", encoded(t, s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name+".txt", []byte(described(s)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.bin"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		written, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(strings.TrimSuffix(file, "bin") + "txt")
		if err != nil {
			t.Fatal(err)
		}
		s, err := fsm.Decode(bytes.NewReader(written))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		got := strings.Split(described(s), "\n")
		for i, line := range strings.Split(string(want), "\n") {
			if i >= len(got) || got[i] != line {
				t.Errorf("%s: line %d:\n got %s\nwant %s", file, i+1, got[min(i, len(got)-1)], line)
				break
			}
		}
		touch(s)
	}
}

// described says everything that can be asked of a State, one thing a line.
func described(s *fsm.State) string {
	var b strings.Builder
	say := func(what string, v any) { fmt.Fprintf(&b, "%s %+v\n", what, v) }
	say("applied", s.Applied())
	say("now", s.Now())
	say("settings", s.Settings())
	say("totals", s.Totals())
	for _, d := range s.Destinations() {
		say("domain", d)
		say("next hop", s.NextHop(d.Name))
		say("counts", s.Counts(d.Name))
	}
	for m := range s.Messages(mail.QueueID{}) {
		say("message", m)
	}
	for _, l := range s.Leases() {
		say("lease", l)
	}
	for _, server := range slices.Sorted(maps.Keys(maps.Collect(s.Starts()))) {
		fmt.Fprintf(&b, "start %s %d\n", server, s.Start(server))
	}
	fmt.Fprintf(&b, "known recipients %d\n", s.KnownRecipients())
	return b.String()
}
