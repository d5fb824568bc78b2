package main

import (
	"fmt"
	"testing"
)

// Who says twice that it leads is no rival of itself.
func TestRival(t *testing.T) {
	leaders := reigns{}
	for _, c := range []struct {
		term  uint64
		node  string
		rival string
	}{{2, "node-1", ""}, {2, "node-1", ""}, {3, "node-2", ""}, {2, "node-2", "node-1"}, {4, "node-1", ""}} {
		if got := leaders.rival(c.term, c.node); got != c.rival {
			t.Errorf("%s in term %d: rival %q, want %q", c.node, c.term, got, c.rival)
		}
	}
}

func TestTermsLed(t *testing.T) {
	line := func(node string, term int) string {
		return fmt.Sprintf("time=2026-01-01T00:00:00Z level=INFO msg=leading node=%s room=cluster term=%d\n", node, term)
	}
	logs := map[string][]byte{
		"node-1": []byte(line("node-1", 2) + "msg=other term=3\n" + line("node-1", 12)),
		"node-2": []byte(line("node-2", 3)),
	}
	if terms, twice := termsLed(logs); terms != 3 || len(twice) != 0 {
		t.Errorf("%d, %q", terms, twice)
	}
	logs["node-2"] = append(logs["node-2"], line("node-2", 12)...)
	if _, twice := termsLed(logs); len(twice) != 1 || twice[0] != "term 12 was led by node-1 and node-2" {
		t.Errorf("%q", twice)
	}
}
