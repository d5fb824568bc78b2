package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A volume is a directory whose block device counts what is written to it.
//
// Where it can be, it is a file system of its own on a loop device, so that the
// device counts nothing of what the rest of the host does. What a process's own
// counter says (write_bytes of /proc/PID/io) is of no use: where a file system
// has large folios, four octets written anew in one of 2 MiB count as 2 MiB, and
// the journal is written by nobody's process.
type volume struct {
	dir string
	own bool // nobody else writes to its device
}

// openVolume makes a volume of at most so many octets. The file behind it is
// sparse and has no name any more, and the loop device is told to go with the
// mount: it takes one umount, here or by hand after a kill -9, to free it all.
func (a *app) openVolume(ctx context.Context, octets int64) (*volume, error) {
	dir, err := os.MkdirTemp("", "holdfast-volume-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	v := &volume{dir: dir}
	if err := v.mount(ctx, octets); err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), v.close())
		}
		a.say("no file system of our own (%v): the device's figures have whatever else the host writes", err)
	}
	return v, nil
}

func (v *volume) mount(ctx context.Context, octets int64) (err error) {
	file := filepath.Join(v.dir, "image")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }() // the device has it open
	if err := errors.Join(f.Truncate(octets), f.Close()); err != nil {
		return err
	}
	// Everything at once: what is left for later would be written while we count.
	if _, err := output(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file); err != nil {
		return err
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", file)
	if err != nil {
		return err
	}
	mounted := filepath.Join(v.dir, mountName)
	if err = os.Mkdir(mounted, 0o755); err == nil {
		// Not to be broken off half-way: then nobody would know whether it is mounted.
		_, err = output(context.WithoutCancel(ctx), "mount", "--types", "ext4", device, mounted)
	}
	v.own = err == nil
	// While it is mounted this is a promise to the kernel, and else done at once.
	_, promised := output(context.WithoutCancel(ctx), "losetup", "--detach", device)
	return errors.Join(err, promised)
}

// mountName is where the file system is mounted, below the volume's directory.
const mountName = "on"

// place is where to put things.
func (v *volume) place() string {
	if v.own {
		return filepath.Join(v.dir, mountName)
	}
	return v.dir
}

// close unmounts and removes everything, whatever has ended meanwhile.
func (v *volume) close() error {
	if v.own {
		if _, err := output(context.Background(), "umount", v.place()); err != nil {
			return err // and nothing below it is removed
		}
	}
	return os.RemoveAll(v.dir)
}

// output runs a command of the system and returns what it says, trimmed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	said := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, said)
	}
	return said, nil
}
