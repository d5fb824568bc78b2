package vfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// datasync writes a file's data, and the metadata that is needed to read it,
// its length above all. Times are left out, which saves a journal commit.
func datasync(fd int) error { return unix.Fdatasync(fd) }

// writevMax is how many pieces one system call takes (IOV_MAX).
const writevMax = 1024

// writev is one pwritev, which may write less than all.
func writev(fd int, pieces [][]byte, off int64) (int, error) {
	return unix.Pwritev(fd, pieces[:min(len(pieces), writevMax)], off)
}

// uncache takes the clean pages of a range out of the page cache.
func uncache(fd int, off, n int64) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) }

// allocate sets room aside behind the end of a file, and makes the file longer by it.
func allocate(fd int, off, n int64) error { return unix.Fallocate(fd, 0, off, n) }

// openPast opens f once more, to write past the page cache in whole sectors of the
// disk. It returns nil where the file system says nothing about that, or nobody
// says what the disk's sectors are: then it may not be worth while.
func openPast(f *os.File) (past *os.File, sector int) {
	err := onDescriptor(f, func(fd int) (err error) {
		if sector, err = sectorOf(fd); err != nil {
			return err
		}
		// Not by its name, which changes.
		past, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|unix.O_DIRECT, 0)
		return err
	})
	if err != nil {
		return nil, 0
	}
	return past, sector
}

// sectorOf returns the unit in which the disk below a file writes: what the kernel
// insists on, or the disk's own sectors where those are longer. A disk that is
// given less than one of its own has to read the rest first.
func sectorOf(fd int) (int, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_offset_align == 0 {
		return 0, unix.EOPNOTSUPP
	}
	physical, err := physicalSector(st.Dev_major, st.Dev_minor)
	if err != nil {
		return 0, err
	}
	sector := max(int(st.Dio_offset_align), int(st.Dio_mem_align), physical)
	if sector > alignment || sector&(sector-1) != 0 {
		return 0, unix.EOPNOTSUPP
	}
	return sector, nil
}

// physicalSector asks the kernel for the sectors of a block device.
func physicalSector(major, minor uint32) (int, error) {
	device := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	text, err := os.ReadFile(device + "/queue/physical_block_size")
	if err != nil { // of a partition the whole disk knows
		text, err = os.ReadFile(device + "/../queue/physical_block_size")
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
