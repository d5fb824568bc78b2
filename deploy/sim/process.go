package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// A process is one life of one node: from Start until it is stopped, is killed, loses
// its host's power or fails by itself.
type process struct {
	name  string
	host  *clustertest.Host
	node  *node.Node
	raft  *clustertest.RaftStore // nil where it is in files
	dead  atomic.Bool
	ended chan struct{} // closed when nothing of it runs any more
}

// Start brings a node up on its disks.
func (w *World) Start(ctx context.Context, name string) error {
	d := w.disks[name]
	p := &process{name: name, host: w.network.Host(name), ended: make(chan struct{})}
	if name != w.inFiles {
		p.raft = d.raft.Open()
	}
	kept := w.storage(p)
	freeSpace := func(string) (int, error) { return int(d.free.Load()), nil }
	if w.measured {
		freeSpace = node.System(w.log).FreeSpace
	}
	n, err := node.Start(ctx, w.config(name), node.Seams{
		Log:    w.log.With("node", name),
		Listen: p.listen, Dial: p.dial, DialSMTP: p.dial, Resolver: w.zone,
		Spool: kept.fs, SpoolSegment: kept.spoolSegment, SpoolPool: kept.spoolPool, Stores: kept.stores,
		Directory: func(c node.DirectoryConfig) (node.Directory, error) {
			return &directory{registry: w.registry, names: w.names, self: cluster.Sighting{
				Name: name, Incarnation: c.ServerID.Incarnation(), Address: net.JoinHostPort(name, clusterPort), Alive: true,
			}}, nil
		},
		FreeSpace:   freeSpace,
		Pace:        w.rhythm,
		Descriptors: func() (uint64, error) { return 1 << 16, nil },
		Now:         w.clocks[name].now,
		Boot:        w.clocks[name].boot,
		Entropy:     &randomReader{random: rand.New(rand.NewPCG(w.random.Uint64(), w.random.Uint64()))},
		Controls:    w.controls,
		Failpoint:   w.failpointOf(p),
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p.node = n
	w.setNode(name, p)
	go w.watch(p)
	return nil
}

// listen and dial are a node's ways to the network, which end with the process.
func (p *process) listen(address string) (net.Listener, error) {
	if p.dead.Load() {
		return nil, net.ErrClosed
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	return p.host.Listen(number)
}

func (p *process) dial(ctx context.Context, address string) (net.Conn, error) {
	if p.dead.Load() {
		return nil, net.ErrClosed
	}
	c, err := p.host.Dial(ctx, address)
	if err == nil && p.dead.Load() { // killed while it dialled
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	return c, err
}

// watch notes when a node fails that nobody killed.
func (w *World) watch(p *process) {
	select {
	case <-p.node.Failed():
		w.fellLock.Lock()
		if !p.dead.Load() && !w.ailing[p.name] {
			w.fell = append(w.fell, fmt.Sprintf("%s: %v", p.name, p.node.Err()))
		}
		w.fellLock.Unlock()
	case <-p.ended:
	}
}

// setNode enters a process that runs, or takes one out.
func (w *World) setNode(name string, p *process) {
	w.nodesLock.Lock()
	defer w.nodesLock.Unlock()
	if p == nil {
		delete(w.nodes, name)
	} else {
		w.nodes[name] = p
	}
}

// node returns the process that runs under a name, nil if none does. Any
// goroutine may call it.
func (w *World) node(name string) *process {
	w.nodesLock.Lock()
	defer w.nodesLock.Unlock()
	return w.nodes[name]
}

// Kill ends a node as SIGKILL does: its links break, it writes nothing more,
// and nobody waits for it. What it wrote, synced or not, is there for the next.
func (w *World) Kill(name string) { w.end(name, (*clustertest.Disk).Kill) }

// PowerCut ends a node with its host: what no sync covered is lost, kept or
// torn.
func (w *World) PowerCut(name string) { w.end(name, (*clustertest.Disk).Crash) }

func (w *World) end(name string, disk func(*clustertest.Disk)) {
	p := w.nodes[name]
	if p == nil {
		return
	}
	w.setNode(name, nil)
	p.dead.Store(true)
	w.network.Kill(name)
	p.raft.Crash()
	disk(w.disks[name].spool)
	go func() {
		// What is left of the process touches neither network nor disk any more;
		// its goroutines have to end all the same, since the bubble waits for them.
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.node.Close(over)
		close(p.ended)
	}()
}

// Stop ends a node cleanly.
func (w *World) Stop(name string) error {
	p := w.nodes[name]
	if p == nil {
		return nil
	}
	w.setNode(name, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := p.node.Close(ctx)
	p.dead.Store(true)
	close(p.ended)
	return err
}

// A randomReader yields random bytes to all rooms of a node at once.
type randomReader struct {
	mu     sync.Mutex
	random *rand.Rand
}

func (r *randomReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		p[i] = byte(r.random.Uint32())
	}
	return len(p), nil
}
