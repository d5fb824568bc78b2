package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Seams are everything through which a node touches the world. System returns
// the real ones; simulations put their own in place.
type Seams struct {
	Log *slog.Logger
	// Listen and Dial are TCP.
	Listen func(address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	// DialSMTP connects to a next hop.
	DialSMTP func(ctx context.Context, address string) (net.Conn, error)
	// Resolver looks up next hops.
	Resolver route.Resolver
	// Spool is the file system that bodies lie on.
	Spool vfs.FS
	// SpoolPool is how many segments of bodies are kept written ahead: disk for
	// speed, 64 MiB each.
	SpoolPool int
	// SpoolSegment is the length of a segment of bodies; 0 is the spool's own.
	SpoolSegment mail.ByteSize
	// Stores opens Raft's log, votes and snapshots in a directory.
	Stores func(dir string) (consensus.Stores, error)
	// Directory starts gossip.
	Directory func(DirectoryConfig) (Directory, error)
	// FreeSpace tells how many per cent of the disk below dir are free.
	FreeSpace func(dir string) (percent int, err error)
	// Descriptors tells how many files and connections this process may have
	// open.
	Descriptors func() (uint64, error)
	// Now is the wall clock. It decides nothing but text and queue ids.
	Now func() time.Time
	// Boot is CLOCK_BOOTTIME, which goes on in suspend.
	Boot func() time.Duration
	// Pace is the rhythm of what a node does with nobody asking for it. The zero
	// value is the daemon's.
	Pace Pace
	// Entropy yields random bytes. It is read concurrently.
	Entropy io.Reader
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
	// Failpoint is called at named moments, for tests that end the node there.
	Failpoint controls.Failpoint
}

// A Pace says how often a node does what it does again and again. A slower one
// makes what follows from it later, never wrong. Zero is the daemon's own.
type Pace struct {
	// Commit is how often followers learn what is committed while nothing else is
	// said, see consensus.Config.CommitInterval.
	Commit time.Duration
	// Tick is how often log time advances, see tickEvery.
	Tick time.Duration
	// Roll is how often a node asks the others how they are, see
	// cluster.Config.RollEvery.
	Roll time.Duration
	// Reconnect is how long a node waits at most before it tries again to connect
	// to one that it cannot reach, see peer.Config.ReconnectMax.
	Reconnect time.Duration
	// Orphan is how long a body is kept that no entry names, see orphanAge.
	Orphan time.Duration
	// Snapshot is how many entries there are between two snapshots, and Trailing how
	// many stay in the log behind one, see consensus.Config.
	Snapshot, Trailing uint64
}

// System returns the seams of a real host.
func System(log *slog.Logger) Seams {
	return rig(broken(Seams{
		Log:         log,
		Listen:      transport.ListenTCP,
		Dial:        transport.DialTCP,
		DialSMTP:    dialSMTP,
		Resolver:    route.NewDNS(route.DNSConfig{}),
		Spool:       vfs.OS(),
		SpoolPool:   3,
		Stores:      consensus.OpenStores,
		Directory:   startGossip,
		FreeSpace:   freeSpace,
		Descriptors: descriptors,
		Now:         time.Now,
		Boot:        bootTime,
		Entropy:     rand.Reader,
	}))
}

func dialSMTP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// bootTime reads CLOCK_BOOTTIME. Go's own monotonic clock stands still while the
// host is suspended, and a lease must not.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

func freeSpace(dir string) (int, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	if fs.Blocks == 0 {
		return 100, nil
	}
	return int(fs.Bavail * 100 / fs.Blocks), nil
}

// descriptors reads the limit that holds for this process. Go's runtime has
// raised the soft one to the hard one by itself.
func descriptors() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return limit.Cur, nil
}
