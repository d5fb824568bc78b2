package consensus

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Bootstrap makes the first configuration of a new cluster, on one node, once
// in the cluster's life. It fails on a node that has any state.
func (n *Node) Bootstrap(servers []Server) error {
	var c raft.Configuration
	for _, s := range servers {
		suffrage := raft.Nonvoter
		if s.Voter {
			suffrage = raft.Voter
		}
		c.Servers = append(c.Servers, raft.Server{
			Suffrage: suffrage,
			ID:       raft.ServerID(s.ID),
			Address:  raftAddress(s.ID, s.Address),
		})
	}
	f := n.raft.BootstrapCluster(c)
	endWith(f, n.ended)
	if err := f.Error(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// HasState reports whether this node has ever been part of a cluster.
func (n *Node) HasState() bool { return n.raft.LastIndex() > 0 || n.raft.CurrentTerm() > 0 }

// Servers returns the latest configuration, committed or not.
func (n *Node) Servers() []Server {
	f := n.raft.GetConfiguration() // answered at once, from a copy
	if f.Error() != nil {
		return nil
	}
	return serversOf(f.Configuration())
}

// serversOf is a configuration in our words.
func serversOf(c raft.Configuration) []Server {
	var servers []Server
	for _, s := range c.Servers {
		id, address, err := splitRaftAddress(s.Address)
		if err != nil || id != ServerID(s.ID) {
			// Not written by Bootstrap or Add.
			id, address = ServerID(s.ID), string(s.Address)
		}
		servers = append(servers, Server{ID: id, Address: address, Voter: s.Suffrage == raft.Voter})
	}
	return servers
}

// AddVoter makes a server a voter, or changes a voter's address. Make it a
// nonvoter first, and a voter when it holds every live body.
func (n *Node) AddVoter(ctx context.Context, id ServerID, address string) error {
	return n.change(ctx, func(timeout time.Duration) raft.IndexFuture {
		return n.raft.AddVoter(raft.ServerID(id), raftAddress(id, address), 0, timeout)
	})
}

// AddNonvoter adds a server that receives the log and has no vote. For a voter
// it only changes the address.
func (n *Node) AddNonvoter(ctx context.Context, id ServerID, address string) error {
	return n.change(ctx, func(timeout time.Duration) raft.IndexFuture {
		return n.raft.AddNonvoter(raft.ServerID(id), raftAddress(id, address), 0, timeout)
	})
}

// RemoveServer removes a server.
func (n *Node) RemoveServer(ctx context.Context, id ServerID) error {
	return n.change(ctx, func(timeout time.Duration) raft.IndexFuture {
		return n.raft.RemoveServer(raft.ServerID(id), 0, timeout)
	})
}

// change asks for a change of the configuration. Raft takes one at a time and
// none before it has committed an entry of its term.
func (n *Node) change(ctx context.Context, ask func(timeout time.Duration) raft.IndexFuture) error {
	p, err := start(n, ctx, ask)
	if err != nil {
		return notAppended(err)
	}
	_, err = p.wait(ctx)
	return err
}
