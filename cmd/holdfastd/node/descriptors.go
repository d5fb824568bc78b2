package node

import (
	"context"
	"fmt"
)

// File descriptors are what strangers can use up by just connecting, and a
// spool or log that cannot open a file ends the node. So the SMTP listeners get
// what is left when everything else has its share.
const (
	// descriptorsReserve is the least that SMTP clients leave: the spool and
	// Raft's stores (a few dozen), the cluster port (at most 128 connections
	// whose other side has not proved to be a node, about ten to each that
	// has), gossip (64 incoming), the admin socket (64), refused SMTP clients
	// that are being told so (64), primaries that call for their mail (32), and
	// connections to next hops.
	descriptorsReserve = 512
	// descriptorsMin is the fewest with which a node starts.
	descriptorsMin = 1024
	// smtpConnectionsMax is the most SMTP clients at a time, however many
	// descriptors there are: each costs memory as well.
	smtpConnectionsMax = 2000
)

// budgetDescriptors decides how many SMTP clients may be connected.
func (n *Node) budgetDescriptors(context.Context) error {
	limit, err := n.seams.Descriptors()
	if err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	n.crowd, err = smtpConnections(limit)
	if err == nil && n.crowd < smtpConnectionsMax {
		n.log.Warn("few file descriptors: fewer SMTP connections are taken",
			"descriptors", limit, "smtp_connections_max", n.crowd, "enough", smtpConnectionsMax+descriptorsReserve)
	}
	return err
}

// smtpConnections is how many SMTP connections a limit of descriptors leaves
// room for.
func smtpConnections(limit uint64) (int, error) {
	if limit < descriptorsMin {
		return 0, fmt.Errorf("%w: this process may open %d files, and needs %d at least: "+
			"raise the hard limit (LimitNOFILE= in a systemd unit, ulimit -n in a shell)", ErrConfig, limit, descriptorsMin)
	}
	return int(min(limit-descriptorsReserve, smtpConnectionsMax)), nil
}
