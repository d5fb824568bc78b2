package main

import (
	"testing"
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
