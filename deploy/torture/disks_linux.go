package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/deploy/datadir"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// disk begins a fault of a disk.
func (n *nemesis) disk(ctx context.Context, f schedule.Fault, r *rand.Rand, a *act) (err error) {
	v := f.Victim
	switch f.Kind {
	case schedule.Power, schedule.PowerAll:
		if f.Kind == schedule.PowerAll {
			a.unhealthy = n.everybody()
		}
		cut := slices.Clone(a.unhealthy)
		a.seen = n.gone(cut)
		for _, i := range cut {
			err = errors.Join(err, n.cast.disks[i].Cut())
		}
		for _, i := range cut {
			err = errors.Join(err, n.end(i))
		}
		a.mend = func() error { return n.remount(cut) }
	case schedule.SyncError:
		a.ends = true
		a.mend, err = n.inject(a, v, fmt.Sprintf("error=EIO:when=%d", 1+r.IntN(3)), "(INJECTED)")
	case schedule.SlowDisk:
		a.mend, err = n.inject(a, v, fmt.Sprintf("delay_enter=%d", 200_000+r.IntN(800_000)), "(DELAYED)")
	case schedule.HungDisk:
		a.mend, err = n.inject(a, v, "delay_enter=60000000", "(DELAYED)", "<unfinished", "<detached")
	case schedule.SyncLie:
		a.refuses = true
		var stop func() error
		stop, err = n.inject(a, v, "retval=0", "(INJECTED)")
		a.mend = func() error {
			err := errors.Join(n.cast.disks[v].Cut(), n.end(v))
			if stop != nil {
				err = errors.Join(err, stop())
			}
			return errors.Join(err, n.remount([]int{v}))
		}
	case schedule.NoSpace:
		a.ends = true
		err = n.fill(a, v)
	case schedule.ReadOnly:
		a.ends = true
		a.seen = n.unwritable(v)
		a.mend, err = n.readOnly(v)
	case schedule.FlipBody, schedule.FlipLog, schedule.FlipTerm:
		a.refuses = true
		if err = n.kill(v); err == nil {
			err = n.flip(a, v, f.Kind, r)
		}
	case schedule.Wipe:
		a.wiped = []int{v}
		if err = n.kill(v); err == nil {
			a.seen = n.emptied(v)
			err = n.wipe(v)
		}
	case schedule.RollBack:
		a.refuses, a.healthyMeanwhile = true, true
		a.mend, err = n.rollBack(a, v)
	default:
		err = errNobody
	}
	return err
}

// end ends a node whose disk is gone, unless it has ended by itself, as it should.
func (n *nemesis) end(i int) error {
	node := n.cast.fleet.Nodes[i]
	if node.Running() {
		_ = node.Kill() // unless it has just ended
	}
	if err := fell(node); err != nil && !errors.Is(err, errRefuses) && !errors.Is(err, errLacks) {
		return err
	}
	return nil
}

// remount gives disks their power back.
func (n *nemesis) remount(nodes []int) error {
	var errs []error
	for _, i := range nodes {
		d := n.cast.disks[i]
		// What looked at the disk last may have it open still, for a moment.
		err := n.cast.await(context.Background(), 10*time.Second, func(context.Context) error { return d.Unmount() })
		errs = append(errs, err, d.Mount())
	}
	return errors.Join(errs...)
}

// inject has the kernel do something else than a node's syncs ask for. marks are what
// strace writes of a call to which that was done.
func (n *nemesis) inject(a *act, i int, what string, marks ...string) (func() error, error) {
	pid := n.cast.fleet.Nodes[i].PID()
	if pid == 0 {
		return nil, nil
	}
	calls := filepath.Join(filepath.Dir(n.cast.fleet.Nodes[i].Dir), "strace.out")
	if err := os.WriteFile(calls, nil, 0o600); err != nil {
		return nil, err
	}
	a.seen = injected(calls, marks)
	cmd := exec.Command("strace", "-f", "-qq", "-o", calls, "-e", "trace=fsync,fdatasync",
		"-e", "inject=fsync,fdatasync:"+what, "-p", strconv.Itoa(pid))
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	err := n.cast.await(context.Background(), 5*time.Second, func(context.Context) error { return traced(pid) })
	stop := func() error {
		select {
		case <-ended:
			return nil // with the node
		default:
		}
		_ = cmd.Process.Signal(syscall.SIGTERM) // it lets go of the node and ends
		select {
		case <-ended:
			return nil
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			return errors.New("strace did not let go of the node")
		}
	}
	if err != nil && n.cast.fleet.Nodes[i].PID() == pid {
		return nil, errors.Join(fmt.Errorf("strace: %w: %s", err, complaint.String()), stop())
	}
	return stop, nil
}

// injected returns what counts the calls with one of the marks, as strace writes them.
func injected(calls string, marks []string) func() string {
	return func() string {
		b, err := os.ReadFile(calls)
		if err != nil {
			return ""
		}
		count := 0
		for line := range bytes.Lines(b) {
			if slices.ContainsFunc(marks, func(mark string) bool { return bytes.Contains(line, []byte(mark)) }) {
				count++
			}
		}
		if count == 0 {
			return ""
		}
		return fmt.Sprintf("%d syncs", count)
	}
}

// traced returns nil when every thread of a process is traced, or it has ended.
func traced(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return err
	}
	for _, name := range threads {
		status, err := os.ReadFile(name)
		if err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) {
			return errors.New("not every thread is traced")
		}
	}
	return nil
}

// fillEvery is how often what a node has given back is taken, too.
const fillEvery = 50 * time.Millisecond

// fill keeps a node's disk full, to the last block: what the node gives back, as it does
// with segments that are written ahead, is taken, too.
func (n *nemesis) fill(a *act, i int) error {
	dir := n.cast.disks[i].Dir
	name := filepath.Join(dir, "filler")
	if err := takeBlocks(name); err != nil {
		return err
	}
	var full atomic.Int32
	count := func() {
		if hasNoBlock(dir) {
			full.Add(1)
		}
	}
	count()
	a.seen = func() string {
		if full.Load() == 0 {
			return ""
		}
		return fmt.Sprintf("no block left, %d times in turn", full.Load())
	}
	a.mend = meanwhile(func(ctx context.Context) {
		wait(ctx, fillEvery)
		// A disk that breaks besides takes nothing, and is full enough.
		if takeBlocks(name) == nil {
			count()
		}
	}, func() { removeForGood(name) })
	return nil
}

// removeForGood removes a file, also for a disk that loses its power next. One that has
// failed meanwhile says so elsewhere.
func removeForGood(name string) {
	_ = os.Remove(name)
	if dir, err := os.Open(filepath.Dir(name)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}

// takeBlocks has a file take what is left of its file system.
func takeBlocks(name string) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := info.Size()
	for _, piece := range []int64{16 << 20, 1 << 20, 64 << 10, 4 << 10} {
		for ; ; at += piece {
			if err := unix.Fallocate(int(f.Fd()), 0, at, piece); errors.Is(err, unix.ENOSPC) {
				break
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// hasNoBlock reports whether a file system is full.
func hasNoBlock(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && (s.Bfree == 0 || s.Bavail == 0)
}

// unwritable returns what says whether a node's file system takes no file.
func (n *nemesis) unwritable(i int) func() string {
	return func() string {
		name := filepath.Join(n.cast.disks[i].Dir, "probe")
		err := os.WriteFile(name, nil, 0o600)
		if err != nil {
			return err.Error()
		}
		_ = os.Remove(name)
		return ""
	}
}

// emptied returns what says how many entries a data directory has lost.
func (n *nemesis) emptied(i int) func() string {
	before, err := os.ReadDir(n.data(i))
	return func() string {
		after, errNow := os.ReadDir(n.data(i))
		if err != nil || errNow != nil || len(before) == 0 || len(after) > 0 {
			return ""
		}
		return fmt.Sprintf("%d entries removed", len(before))
	}
}

// readOnly has the kernel find an error in a node's file system, after which it
// is read-only.
func (n *nemesis) readOnly(i int) (func() error, error) {
	d := n.cast.disks[i]
	if err := unix.Mount("", d.Dir, "", unix.MS_REMOUNT, "errors=remount-ro"); err != nil {
		return nil, fmt.Errorf("remount: %w", err)
	}
	device, err := blockDevice(d.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", device, "trigger_fs_error"), []byte("torture\n"), 0); err != nil {
		return nil, err
	}
	return func() error {
		if err := n.end(i); err != nil {
			return err
		}
		if err := n.cast.await(context.Background(), 10*time.Second, func(context.Context) error { return d.Unmount() }); err != nil {
			return err
		}
		// 1: errors were corrected (e2fsck(8)).
		out, err := exec.Command("e2fsck", "-fy", image(d.Dir)).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
			return fmt.Errorf("e2fsck: %w: %s", err, out)
		}
		return d.Mount()
	}, nil
}

// image is the file that a node's file system lies in.
func image(mounted string) string { return filepath.Join(filepath.Dir(mounted), "disk.img") }

// blockDevice is the name of the device that a directory lies on.
func blockDevice(dir string) (string, error) {
	var s unix.Stat_t
	if err := unix.Stat(dir, &s); err != nil {
		return "", err
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(s.Dev), unix.Minor(s.Dev)))
	return filepath.Base(link), err
}

// data is a node's data directory.
func (n *nemesis) data(i int) string {
	return filepath.Join(n.cast.fleet.Nodes[i].Dir, "data")
}

// wipe empties a data directory.
func (n *nemesis) wipe(i int) error {
	entries, err := os.ReadDir(n.data(i))
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(n.data(i), e.Name())))
	}
	return err
}

// flip flips one bit of what a node that does not run has written.
func (n *nemesis) flip(a *act, i int, k schedule.Kind, r *rand.Rand) error {
	kind := map[schedule.Kind]datadir.Kind{
		schedule.FlipBody: datadir.BodySegment, schedule.FlipLog: datadir.LogSegment, schedule.FlipTerm: datadir.StableStore,
	}[k]
	root, err := filepath.EvalSymlinks(n.data(i))
	if err != nil {
		return err
	}
	var names []string
	err = filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		within, err := filepath.Rel(root, name)
		if found, _ := datadir.KindOf(filepath.ToSlash(within)); found == kind {
			names = append(names, name)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		return errors.Join(err, fmt.Errorf("%d files of kind %q", len(names), kind))
	}
	name := names[r.IntN(len(names))]
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	written := len(bytes.TrimRight(b, "\x00")) // what lies behind was made ready
	if written == 0 {
		return nil
	}
	at, bit := r.IntN(written), r.IntN(8)
	what := fmt.Sprintf("bit %d of octet %d of %s, %d octets", bit, at, strings.TrimPrefix(name, root+"/"), len(b))
	a.seen = func() string { return what }
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b[at] ^ 1<<bit}, int64(at))
	return errors.Join(err, f.Sync(), f.Close())
}

// rollBack keeps an image of a node's disk, and gives the node that one when it
// is mended.
func (n *nemesis) rollBack(a *act, i int) (func() error, error) {
	d, node := n.cast.disks[i], n.cast.fleet.Nodes[i]
	if err := n.kill(i); err != nil {
		return nil, err
	}
	unmount := func() error {
		return n.cast.await(context.Background(), 10*time.Second, func(context.Context) error { return d.Unmount() })
	}
	old := image(d.Dir) + ".old"
	if err := unmount(); err != nil {
		return nil, err
	}
	if out, err := exec.Command("cp", "--sparse=always", image(d.Dir), old).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("keep an image: %w: %s", err, out)
	}
	if err := errors.Join(d.Mount(), node.Start()); err != nil {
		return nil, err
	}
	gone, outdated := "", false
	a.seen = func() string { return gone }
	a.mustRefuse = func() bool { return outdated }
	return func() error {
		n.cast.diary.fail(time.Now(), i)
		now, known := n.cast.statuses(context.Background())[i]
		if err := errors.Join(n.end(i), unmount()); err != nil {
			return err
		}
		if err := exec.Command("cmp", "-s", old, image(d.Dir)).Run(); err != nil {
			gone = "what was written since is gone"
			// One that followed a leader since had its start recorded by a majority.
			outdated = known && now.Quorum
		}
		return errors.Join(os.Rename(old, image(d.Dir)), d.Mount())
	}, nil
}

// descriptors counts the files that a process has open.
func descriptors(pid int) (int, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(open), err
}
