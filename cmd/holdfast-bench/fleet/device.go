package fleet

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sectorBytes is the unit of /proc/diskstats, whatever the disk's own is.
const sectorBytes = 512

// DeviceWritten returns how many octets were ever written to the block device
// that dir lies on, by whoever it was, the file system's journal included. It
// has what dir's file system holds back written first.
func DeviceWritten(dir string) (int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, fmt.Errorf("look at the device: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return 0, fmt.Errorf("sync the file system of %s: %w", dir, err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return 0, fmt.Errorf("device of %s: %w", dir, err)
	}
	stats, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0, fmt.Errorf("look at the device: %w", err)
	}
	written, ok := sectorsWritten(string(stats), unix.Major(s.Dev), unix.Minor(s.Dev))
	if !ok {
		return 0, fmt.Errorf("the device of %s, %d:%d, is not in /proc/diskstats", dir, unix.Major(s.Dev), unix.Minor(s.Dev))
	}
	return written * sectorBytes, nil
}

// sectorsWritten is the tenth word of the device's line.
func sectorsWritten(stats string, major, minor uint32) (int64, bool) {
	for line := range strings.Lines(stats) {
		words := strings.Fields(line)
		if len(words) < 10 || words[0] != strconv.FormatUint(uint64(major), 10) || words[1] != strconv.FormatUint(uint64(minor), 10) {
			continue
		}
		v, err := strconv.ParseInt(words[9], 10, 64)
		return v, err == nil
	}
	return 0, false
}
