package node

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
)

// A Directory knows the other members: gossip, or what a simulation puts in its
// place.
type Directory interface {
	cluster.Directory
	// Address returns where the named node's cluster port is now.
	Address(name string) (string, bool)
	// Mailhosts lists how each member appears in SMTP, this one included, also
	// members that were seen once and are gone now: mail for a primary must
	// not be sent to one of us because it was down when we looked.
	Mailhosts() []Mailhost
	// Members lists the members for people.
	Members() []admin.Member
	Close() error
}

// A Mailhost is how one member appears to other mail servers.
type Mailhost struct {
	Hostname string
	SMTP     []string // IP:port of its listeners
}

// DirectoryConfig is what a Directory is made from.
type DirectoryConfig struct {
	Config   *config.Config
	ServerID consensus.ServerID
	Log      *slog.Logger
}

// mailhost is how this node appears in SMTP. A listener on all addresses is
// known by the address that the other nodes dial.
func mailhost(c *config.Config) Mailhost {
	h := Mailhost{Hostname: string(c.Hostname)}
	advertised, _, _ := net.SplitHostPort(c.ClusterAdvertise)
	for _, listen := range c.SMTPListen {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = advertised
		}
		if net.ParseIP(host) != nil {
			h.SMTP = append(h.SMTP, net.JoinHostPort(host, port))
		}
	}
	return h
}

// raftStream is the port's Raft side in consensus' words.
type raftStream struct {
	raft   *transport.Raft
	starts *cluster.Starts
}

func (s raftStream) Accept() (net.Conn, error) { return s.raft.Accept() }
func (s raftStream) Close() error              { return s.raft.Close() }
func (s raftStream) Addr() net.Addr            { return s.raft.Addr() }

func (s raftStream) Dial(ctx context.Context, id consensus.ServerID, addr string) (net.Conn, error) {
	c, err := s.raft.Dial(ctx, transport.ServerID(id), addr)
	if errors.Is(err, transport.ErrOutdated) && !errors.Is(err, transport.ErrPeer) {
		s.starts.ReportOutdated(err)
	}
	return c, err
}
