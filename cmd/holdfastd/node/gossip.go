package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cluster/gossip"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/fsm"
)

// gossiped is gossip as a Directory.
type gossiped struct{ *gossip.Gossip }

// startGossip takes part in gossip.
func startGossip(c DirectoryConfig) (Directory, error) {
	key, err := config.ReadGossipKey(c.Config.GossipKeyFile)
	if err != nil {
		return nil, fmt.Errorf("%w: gossip_key_file: %w", ErrConfig, err)
	}
	host := mailhost(c.Config)
	meta := gossip.Meta{
		Incarnation:    c.ServerID.Incarnation(),
		ClusterAddr:    c.Config.ClusterAdvertise,
		CommandVersion: fsm.CommandVersion,
		Hostname:       host.Hostname, SMTP: host.SMTP,
	}
	g, err := gossip.Start(gossip.Config{
		Cluster: c.Config.Cluster, Name: string(c.Config.Node), Meta: meta,
		Listen: c.Config.GossipListen, Advertise: c.Config.GossipAdvertise, Key: key,
		WAN: c.Config.Latency == config.WAN, Join: c.Config.Join,
		PeersFile: filepath.Join(c.Config.DataDir, peersFile), Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	return gossiped{g}, nil
}

// leavePatience bounds the goodbye.
const leavePatience = 500 * time.Millisecond

// Close says goodbye first, so that the others know that this node did not
// fail.
func (g gossiped) Close() error {
	return errors.Join(g.Gossip.Leave(leavePatience), g.Gossip.Close())
}

func (g gossiped) Sightings() []cluster.Sighting {
	var all []cluster.Sighting
	for _, m := range g.Gossip.Members() {
		all = append(all, cluster.Sighting{
			Name: m.Name, Incarnation: m.Incarnation, Address: m.ClusterAddr,
			Alive: m.Status == gossip.Alive, HasState: m.HasState, Sees: m.Sees,
		})
	}
	return all
}

// Announce passes on what cannot be sent now when it changes again; nothing
// depends on it but the founding of a new cluster.
func (g gossiped) Announce(hasState bool, sees string) { _ = g.Gossip.Announce(hasState, sees) }

func (g gossiped) Mailhosts() []Mailhost {
	var all []Mailhost
	for _, m := range g.Gossip.Members() {
		all = append(all, Mailhost{Hostname: m.Hostname, SMTP: m.SMTP})
	}
	return all
}

func (g gossiped) Members() []admin.Member {
	var all []admin.Member
	for _, m := range g.Gossip.Members() {
		all = append(all, admin.Member{
			Name: fsm.NodeName(m.Name), ServerID: string(m.ServerID()), ClusterAddress: m.ClusterAddr,
			GossipStatus: m.Status.String(), HasState: m.HasState, CommandVersion: m.CommandVersion,
			Hostname: m.Hostname, SMTPAddresses: m.SMTP,
		})
	}
	return all
}
