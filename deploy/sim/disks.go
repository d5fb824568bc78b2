package sim

import (
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Disks are what a host keeps octets on. They outlive the processes that use them.
type disks struct {
	spool *clustertest.Disk // and Raft's log, where it lies in segments
	raft  *clustertest.RaftDisk
	free  atomic.Int64 // per cent
}

func newDisks(seed uint64) *disks {
	d := &disks{
		spool: clustertest.NewDisk(seed),
		raft:  clustertest.NewRaftDisk(seed, 4*time.Millisecond),
	}
	d.free.Store(50)
	return d
}

// In worlds with segments they are so short that a seed fills many.
const (
	logSegmentBytes   = 256 << 10
	spoolSegmentBytes = 1 * mail.MiB
	poolFiles         = 1
	// syncMax is how long a sync takes at most.
	syncMax = 4 * time.Millisecond
)

// A storage is what a process keeps its octets in: the disks of its host, as its world
// has them.
type storage struct {
	fs           vfs.FS // of bodies, and of the log where it lies in segments
	spoolSegment mail.ByteSize
	spoolPool    int
	stores       func(dir string) (consensus.Stores, error)
}

// storage makes that of a process, whose Raft stores are open.
func (w *World) storage(p *process) storage {
	var s storage
	disk := w.disks[p.name].spool
	switch {
	case p.name == w.inFiles:
		s.fs, s.spoolPool = vfs.OS(), 1
	case w.measured:
		s.fs, s.spoolSegment, s.spoolPool = vfs.OS(), 4*mail.MiB, poolFiles
	case w.host:
		s.fs, s.spoolSegment = vfs.OS(), 16*mail.KiB
	case w.segments:
		s.spoolSegment, s.spoolPool = spoolSegmentBytes, poolFiles
		disk.SetLatency(w.latency())
		s.fs = disk.Mount()
		if w.failpoint != nil {
			s.spoolSegment = shortSegmentBytes
			s.fs = observedFS{s.fs, w.failpointOf(p)}
		}
	default:
		s.fs = disk.Mount()
	}
	s.stores = func(dir string) (consensus.Stores, error) {
		if w.host || p.name == w.inFiles {
			return consensus.OpenStores(dir)
		}
		stores := consensus.Stores{Log: p.raft, Stable: p.raft, Snapshots: p.raft}
		if !w.segments {
			return stores, nil
		}
		options := raftlog.Options{SegmentBytes: logSegmentBytes, PoolFiles: poolFiles}
		if w.failpoint != nil {
			options.SegmentBytes = shortSegmentBytes
			stores = observedStores(stores, w.failpointOf(p))
		}
		var err error
		stores.Log, stores.Close, err = consensus.OpenLog(s.fs, filepath.Join(dir, "log"), p.raft, options)
		return stores, err
	}
	return s
}

// latency returns how long the operations of a disk take.
func (w *World) latency() func(clustertest.Op) time.Duration {
	random := rand.New(rand.NewPCG(w.random.Uint64(), 0x73796e63)) // the disk asks for one at a time
	return func(op clustertest.Op) time.Duration {
		if op != clustertest.OpSync {
			return 0
		}
		return time.Duration(random.Int64N(int64(syncMax)))
	}
}

// setAiling says whether a node's disk is broken on purpose.
func (w *World) setAiling(name string, ailing bool) {
	w.fellLock.Lock()
	defer w.fellLock.Unlock()
	w.ailing[name] = ailing
}

// Wipe gives a node that does not run empty disks, as a host has that was
// installed anew.
func (w *World) Wipe(name string) {
	w.wipes++
	w.disks[name] = newDisks(w.seed + 1000*uint64(w.wipes))
}
