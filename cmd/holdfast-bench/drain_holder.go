package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/link"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/rival"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A nodesHolder is three new nodes.
type nodesHolder struct{ s *scene }

func (a *app) openNodes(ctx context.Context, o sceneOptions) (holder, error) {
	quiet := *a
	quiet.quiet = true
	s, err := quiet.openScene(ctx, o)
	if err != nil {
		return nil, err
	}
	s.a = a // It says where a failure can be looked at.
	return nodesHolder{s}, nil
}

func (n nodesHolder) targets() []string { return n.s.fleet.Addresses() }

func (n nodesHolder) nextHop() string { return n.s.primary }

// nextHopDown is what a node calls a next hop that two nodes failed to reach.
const nextHopDown = "down"

func (n nodesHolder) deferred(ctx context.Context, messages int) error {
	if err := n.s.fleet.Ready(ctx); err != nil {
		return err
	}
	err := n.s.fleet.Until(ctx, "the nodes to defer all", func(ctx context.Context) error {
		for _, node := range n.s.fleet.Nodes {
			status, err := n.s.fleet.Status(ctx, node)
			if err != nil {
				return err
			}
			if q := status.Queue; q.Queued != messages || q.Leased > 0 || q.InDoubt > 0 || q.Held > 0 {
				return fmt.Errorf("%s: %v, want %d", node.Name, q, messages)
			}
			for _, d := range status.Domains {
				if d.Name == domains()[0] && d.NextHopState != nextHopDown {
					return fmt.Errorf("%s calls the next hop of %s %s", node.Name, d.Name, d.NextHopState)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.s.settle(ctx)
}

func (n nodesHolder) flush(ctx context.Context) error {
	_, err := n.s.fleet.Holdfast(ctx, n.s.fleet.Nodes[0], "domain", "flush", domains()[0])
	return err
}

func (n nodesHolder) left(ctx context.Context) (int, error) {
	most := 0
	for _, node := range n.s.fleet.Nodes {
		status, err := n.s.fleet.Status(ctx, node)
		if err != nil {
			return 0, errors.Join(err, n.s.fleet.Fallen())
		}
		if status.Queue.Held > 0 {
			return 0, fmt.Errorf("%s: %v", node.Name, status.Queue)
		}
		most = max(most, status.Queue.Queued, status.Queue.Leased, status.Queue.InDoubt)
	}
	return most, nil
}

func (n nodesHolder) logIndex(ctx context.Context) (uint64, error) {
	_, status, err := n.s.fleet.Leader(ctx)
	return status.CommitIndex, err
}

func (n nodesHolder) close(_ context.Context, failed bool) error {
	fallen := n.s.fleet.Fallen()
	n.s.failed = n.s.failed || failed || fallen != nil
	return errors.Join(fallen, n.s.close())
}

// A postfixHolder is a new Postfix.
type postfixHolder struct {
	p            *rival.Postfix
	dir          string
	address, hop string
}

func (a *app) openPostfix(ctx context.Context, dir string) (_ holder, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	h := &postfixHolder{dir: dir}
	if h.address, err = fleet.FreeAddress(); err != nil {
		return nil, err
	}
	if h.hop, err = fleet.FreeAddress(); err != nil {
		return nil, err
	}
	if h.p, err = rival.New(rival.Options{Dir: dir, Address: h.address, Domain: domains()[0], NextHop: h.hop}); err != nil {
		return nil, err
	}
	if err := h.p.Start(ctx); err != nil {
		return nil, errors.Join(err, h.close(context.WithoutCancel(ctx), true))
	}
	return h, nil
}

func (h *postfixHolder) targets() []string { return []string{h.address} }

func (h *postfixHolder) nextHop() string { return h.hop }

// postfixPoll is how often its queue is looked at: each look reads all of its
// directories.
const postfixPoll = time.Second

func (h *postfixHolder) deferred(ctx context.Context, messages int) error {
	want := rival.Queue{Deferred: messages}
	for {
		q, err := h.p.Queue()
		if err != nil || q == want {
			return err
		}
		select {
		case <-time.After(postfixPoll):
		case <-ctx.Done():
			return fmt.Errorf("wait for Postfix to defer all: %w; last: %v", context.Cause(ctx), q)
		}
	}
}

func (h *postfixHolder) flush(ctx context.Context) error { return h.p.Flush(ctx) }

func (h *postfixHolder) left(context.Context) (int, error) {
	q, err := h.p.Queue()
	return q.All(), err
}

func (h *postfixHolder) logIndex(context.Context) (uint64, error) { return 0, nil }

func (h *postfixHolder) close(ctx context.Context, _ bool) error {
	return errors.Join(h.p.Close(ctx), os.RemoveAll(h.dir))
}

// A drainPrimary is a primary that is up, and perhaps far away.
type drainPrimary struct {
	server *sink.Server
	served sync.WaitGroup
	cut    context.CancelFunc // ends the way to it
}

// openPrimary brings a primary up at an address, at the far end of a link if there
// is to be a round trip.
func openPrimary(address string, roundTrip time.Duration, arrival func(ledger.Arrival) error) (*drainPrimary, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("bring the primary up: %w", err)
	}
	p := &drainPrimary{server: sink.New(sink.Options{Hostname: primaryName, Arrival: arrival}), cut: func() {}}
	if roundTrip > 0 {
		near := l
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, errors.Join(fmt.Errorf("bring the primary up: %w", err), near.Close())
		}
		far := l.Addr().String()
		var ctx context.Context
		ctx, p.cut = context.WithCancel(context.Background())
		p.served.Go(func() {
			_ = link.Serve(ctx, near, link.Options{RoundTrip: roundTrip, Dial: func(ctx context.Context) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", far)
			}})
		})
	}
	p.served.Go(func() { _ = p.server.Serve(l) }) // ErrClosed
	return p, nil
}

// close takes it down. It may be called again.
func (p *drainPrimary) close() {
	p.cut()
	p.server.Close()
	p.served.Wait()
}
