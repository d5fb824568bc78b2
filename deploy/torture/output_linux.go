package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// occupy makes a directory, or empties it, for this run alone until leave is called.
// All else that a run makes has a name of its own: what lies in the directory for
// temporary files, and in namespaces.
// One that has something in it, and was never a run's, is left alone.
func occupy(dir string) (leave func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	leave = func() { f.Close() }
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		leave()
		return nil, fmt.Errorf("another run writes to %s (-out chooses another directory): %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == ownMark }) {
		err = fmt.Errorf("%s is not empty, and no run has made what is in it (-out chooses another directory)", dir)
		entries = nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ownMark), nil, 0o644)
	}
	if err != nil {
		leave()
	}
	return leave, err
}

// ownMark is a file in each directory that a run writes to.
const ownMark = ".holdfast-torture"

// write writes the report, and a line for who counts runs.
func (r *run) write(v verdict) error {
	page := r.page(v)
	if err := os.WriteFile(filepath.Join(r.o.out, "report.html"), []byte(page), 0o644); err != nil {
		return err
	}
	r.diary.say("the report is %s", filepath.Join(r.o.out, "report.html"))
	if r.o.summary == "" {
		return nil
	}
	f, err := os.OpenFile(r.o.summary, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "seed=%d minutes=%g faults=%d broken=%d %v\n", r.o.seed, r.o.length.Minutes(), r.faults(), len(v.broken), v)
	return errors.Join(err, f.Close())
}

func (r *run) faults() (n int) {
	for _, count := range r.nem.done {
		n += count
	}
	return n
}

// keep keeps what tells why a run failed: everything but disks.
func (r *run) keep() error {
	err := filepath.WalkDir(r.dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(r.dir, name)
		if err != nil {
			return err
		}
		to := filepath.Join(r.o.out, within)
		switch {
		case e.IsDir() && (strings.HasPrefix(within, "disk-of-") || slices.Contains([]string{"data", "ca", "tree", "queue"}, e.Name())):
			return fs.SkipDir
		case e.IsDir():
			return os.MkdirAll(to, 0o755)
		case !e.Type().IsRegular() || strings.HasSuffix(within, ".key") || strings.HasSuffix(within, ".pem"):
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	r.diary.say("kept: ledgers, configurations and logs in %s", r.o.out)
	return err
}
