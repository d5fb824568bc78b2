package node

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRegressionDescriptorsLeaveAReserve: strangers who connect must never take what the
// spool and Raft need.
//
// It holds this defect: strangers who only connected took the last file descriptors, the
// spool failed to open a file, and the node ended.
func TestRegressionDescriptorsLeaveAReserve(t *testing.T) {
	for limit, want := range map[uint64]int{
		descriptorsMin:       descriptorsMin - descriptorsReserve,
		2048:                 2048 - descriptorsReserve,
		1 << 20:              smtpConnectionsMax,
		math.MaxUint64:       smtpConnectionsMax, // RLIM_INFINITY
		smtpConnectionsMax:   smtpConnectionsMax - descriptorsReserve,
		descriptorsMin + 100: descriptorsMin + 100 - descriptorsReserve,
	} {
		if got, err := smtpConnections(limit); got != want || err != nil {
			t.Errorf("%d descriptors: %d connections, %v; want %d", limit, got, err, want)
		}
	}
	for _, limit := range []uint64{0, 64, descriptorsMin - 1} {
		_, err := smtpConnections(limit)
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "LimitNOFILE") {
			t.Errorf("%d descriptors: %v", limit, err)
		}
	}
}

// TestDescriptorsOfThisHost: the seam reads the limit that the system enforces.
func TestDescriptorsOfThisHost(t *testing.T) {
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	if got, err := descriptors(); got != want.Cur || err != nil {
		t.Errorf("%d, %v; want %d", got, err, want.Cur)
	}
	// A node with too few does not start, whatever else is right.
	n := &Node{seams: Seams{Descriptors: func() (uint64, error) { return 64, nil }}}
	if err := n.budgetDescriptors(context.Background()); !errors.Is(err, ErrConfig) {
		t.Errorf("64 descriptors: %v", err)
	}
}
