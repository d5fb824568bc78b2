package rival

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Queue counts the messages in the queues of a Postfix. A message that moves
// while they are counted may be counted twice, or not at all.
type Queue struct{ Incoming, Active, Deferred int }

// All is how many messages there are.
func (q Queue) All() int { return q.Incoming + q.Active + q.Deferred }

func (q Queue) String() string {
	return fmt.Sprintf("incoming=%d active=%d deferred=%d", q.Incoming, q.Active, q.Deferred)
}

// Queue counts the messages, each of which is a file.
func (p *Postfix) Queue() (q Queue, err error) {
	for _, d := range []struct {
		name  string
		count *int
	}{{"incoming", &q.Incoming}, {"active", &q.Active}, {"deferred", &q.Deferred}} {
		if *d.count, err = countFiles(filepath.Join(p.queue, d.name)); err != nil {
			return q, fmt.Errorf("look at Postfix' queue: %w", err)
		}
	}
	return q, nil
}

// countFiles counts the files below a directory, which come and go meanwhile.
func countFiles(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	return n, err
}

// Flush has it deliver all that it has deferred, and forget which next hops it
// found dead: postqueue -f.
func (p *Postfix) Flush(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "postqueue", "-c", p.config, "-f").CombinedOutput()
	if err != nil {
		return fmt.Errorf("postqueue -f: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
