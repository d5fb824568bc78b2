package clustertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNoPowerDisk: there can be no PowerDisk here. The error says why.
var ErrNoPowerDisk = errors.New("no file system whose power can be cut")

// A PowerDisk is an ext4 in a file, on a loop device: a real file system, for
// real processes, whose power can be cut. It is not safe for concurrent use.
type PowerDisk struct {
	image string
	// Dir is where the file system is seen, while it is mounted.
	Dir     string
	mounted bool
}

// NewPowerDisk makes an empty file system of that size below dir. It needs root,
// loop devices and e2fsprogs; ErrNoPowerDisk says which of them is missing.
func NewPowerDisk(dir string, octets int64) (*PowerDisk, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: mounting one needs root", ErrNoPowerDisk)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoPowerDisk, err)
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return nil, fmt.Errorf("%w: e2fsprogs: %w", ErrNoPowerDisk, err)
	}
	d := &PowerDisk{image: filepath.Join(dir, "disk.img"), Dir: filepath.Join(dir, "disk")}
	if err := errors.Join(os.Mkdir(d.Dir, 0o700), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, octets)); err != nil {
		return nil, err
	}
	return d, command(mkfs, "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", d.image)
}

func command(name string, arguments ...string) error {
	if out, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, out)
	}
	return nil
}

// Mount mounts the file system. After a cut that is what happens when the power
// is back: the journal is replayed.
func (d *PowerDisk) Mount() error {
	err := command("mount", "-t", "ext4", "-o", "loop", d.image, d.Dir)
	d.mounted = d.mounted || err == nil
	return err
}

// Unmount unmounts it, if it is mounted. Nobody may have a file of it open.
func (d *PowerDisk) Unmount() error {
	if !d.mounted {
		return nil
	}
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	d.mounted = false
	return nil
}

const (
	ioctlShutdown      = 0x8004587d // FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
	shutdownNoLogFlush = 2          // not even the journal is written any more
)

// Cut cuts the power: what no sync covered is lost. From now on each write and
// sync fails. What lies in the kernel's memory can be read until Unmount.
func (d *PowerDisk) Cut() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, shutdownNoLogFlush)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	return nil
}
