package main

import (
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// How to repeat a run is a command that makes the same one.
func TestAgain(t *testing.T) {
	o, err := parse([]string{"-seed", "7", "-minutes", "0.5", "-only", "kill,power loss"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.again(), "make torture SEED=7 MINUTES=0.5 ONLY='kill,power loss'"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	o, err = parse([]string{"-seed", "7", "-minutes", "2", "-nodes", "5", "-peer", "exim:primary"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.again(), "make torture SEED=7 MINUTES=2 NODES=5 PEER=exim:primary"; got != want || o.nodes != 5 {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range [][]string{{"-nodes", "4"}, {"-peer", "sendmail"}, {"-only", "earthquake"}, {"-minutes", "0"}, {"-minutes", "90"}, {"more"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// The list has a line for each kind, which begins with what -only wants and goes on with
// what the kind does; what it needs stands behind that.
func TestListKinds(t *testing.T) {
	var b strings.Builder
	listKinds(&b)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(schedule.Kinds()) {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	for i, k := range schedule.Kinds() {
		name, rest, _ := strings.Cut(lines[i], "  ")
		rest = strings.TrimSpace(rest)
		needs, described := strings.CutPrefix(rest, k.Does())
		if name != string(k) || !described || len(needs) > 0 != (len(k.Needs()) > 0) {
			t.Errorf("%s: %q", k, lines[i])
		}
		for _, n := range k.Needs() {
			if !strings.Contains(needs, string(n)) {
				t.Errorf("%s needs %s: %q", k, n, lines[i])
			}
		}
	}
}
