package node

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
)

// Check looks at what a configuration names without starting anything: that
// this node's certificate is one, belongs to the node and its cluster, and that
// the SMTP certificate and the gossip key can be read. Its error is a
// config.Problem.
func Check(c *config.Config) error {
	identity, err := transport.LoadIdentity(c.CA, c.Cert, c.Key, c.Cluster)
	if err != nil {
		return c.Problem("cert", err)
	}
	if identity.Name() != string(c.Node) {
		return c.Problem("cert", fmt.Errorf("%s is that of node %q, not of %q: issue one with \"holdfast ca issue --node %s\"", c.Cert, identity.Name(), c.Node, c.Node))
	}
	if _, err := smtpCertificate(c); err != nil {
		return c.Problem("smtp_cert", err)
	}
	if _, err = config.ReadGossipKey(c.GossipKeyFile); err != nil {
		return c.Problem("gossip_key_file", err)
	}
	return nil
}
