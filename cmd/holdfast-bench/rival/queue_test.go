package rival

import (
	"os"
	"path/filepath"
	"testing"
)

// TestQueue: every file below a queue's directory is a message of it, at any
// depth, and the logs of deferred messages are none.
func TestQueue(t *testing.T) {
	p := &Postfix{queue: t.TempDir()}
	if q, err := p.Queue(); err != nil || q != (Queue{}) {
		t.Errorf("without directories: %v, %v", q, err)
	}
	for _, name := range []string{"incoming/1", "active/2", "active/3", "deferred/A/4", "deferred/A/5", "deferred/B/6", "defer/A/4", "defer/B/6"} {
		path := filepath.Join(p.queue, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	q, err := p.Queue()
	if err != nil || q != (Queue{1, 2, 3}) || q.All() != 6 {
		t.Errorf("%v, %v", q, err)
	}
	if got := q.String(); got != "incoming=1 active=2 deferred=3" {
		t.Errorf("%q", got)
	}
}
