package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The names of the files that "ca create" and "ca issue" write.
const (
	caBase        = "ca"   // ca.crt, ca.key
	nodeBase      = "node" // node.crt, node.key
	gossipKeyFile = "gossip.key"
)

func (a *app) caCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "ca",
		Short: "Make the cluster's own certificate authority, and certificates of nodes",
		Long: `Make what nodes prove themselves with. A cluster has its own certificate
authority; nothing that it signs is of use elsewhere. Keep its directory off the
nodes: whoever has ca.key can make a node.`,
		Example: `  holdfast ca create --cluster example --out ./ca
  holdfast ca issue --ca ./ca --node mx1 --out ./mx1`,
	}, a.caCreateCommand(), a.caIssueCommand())
}

func (a *app) caCreateCommand() *cobra.Command {
	var cluster, out string
	cmd := &cobra.Command{
		Use:   "create --cluster NAME --out DIR",
		Short: "Make a certificate authority and a gossip key",
		Long: `Make a cluster's certificate authority, DIR/ca.crt and DIR/ca.key, and the key
that its gossip is encrypted with, DIR/gossip.key. DIR is made if it is not there.
Nothing is ever overwritten.`,
		Example: `  holdfast ca create --cluster example --out ./ca`,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "cluster", "out"); err != nil {
				return err
			}
			if err := checkName(cluster); err != nil {
				return usage(cmd, "--cluster: %v", err)
			}
			pair, err := transport.CreateCA(cluster, time.Now())
			if err != nil {
				return fmt.Errorf("make certificate authority: %w", err)
			}
			if err := makeDir(out); err != nil {
				return err
			}
			keyFile := filepath.Join(out, gossipKeyFile)
			if err := absent(keyFile, out); err != nil {
				return err
			}
			caCert, caKey, err := pair.WriteFiles(out, caBase)
			if err != nil {
				return taken(err, out)
			}
			if err := writeGossipKey(keyFile); err != nil {
				return err
			}
			return a.done(fmt.Sprintf("Made the certificate authority of cluster %s: %s, %s; and %s.", cluster, caCert, caKey, keyFile),
				map[string]any{"cluster": cluster, "ca": caCert, "ca_key": caKey, "gossip_key_file": keyFile})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "the cluster's `name`")
	cmd.Flags().StringVar(&out, "out", "", "the `directory` to write to")
	return cmd
}

func (a *app) caIssueCommand() *cobra.Command {
	var ca, node, out string
	var addresses []string
	cmd := &cobra.Command{
		Use:   "issue --ca DIR --node NAME [--address HOST]... --out DIR",
		Short: "Make a node's certificate and key",
		Long: `Make the certificate and key of one node, and put everything that the node needs
into one directory: node.crt, node.key, ca.crt and, where the CA's directory has
it, gossip.key. Copy it to the node, readable by the daemon's user alone. Nothing
is ever overwritten: give each node a directory of its own.

Nodes know one another by name. --address, a host name or an IP address, is for
people and other tools.`,
		Example: `  holdfast ca issue --ca ./ca --node mx1 --out ./mx1
  holdfast ca issue --ca ./ca --node mx2 --address mx2.example.net --address 192.0.2.2 --out ./mx2`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "ca", "node", "out"); err != nil {
				return err
			}
			if err := checkName(node); err != nil {
				return usage(cmd, "--node: %v", err)
			}
			for _, host := range addresses {
				if _, err := mail.ParseDomain(host); err != nil && net.ParseIP(host) == nil {
					return usage(cmd, "--address %q is neither a host name nor an IP address", host)
				}
			}
			files, err := issueNode(ca, node, addresses, out)
			if err != nil {
				return err
			}
			return a.done(fmt.Sprintf("Made the certificate of node %s: %s, %s, with %s.", node, files.cert, files.key, files.ca),
				map[string]any{"node": node, "cert": files.cert, "key": files.key, "ca": files.ca, "gossip_key_file": files.gossipKey})
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "the `directory` that \"ca create\" wrote")
	cmd.Flags().StringVar(&node, "node", "", "the node's `name`")
	cmd.Flags().StringArrayVar(&addresses, "address", nil, "a `host` name or IP address of the node; may be repeated")
	cmd.Flags().StringVar(&out, "out", "", "the `directory` to write to")
	return cmd
}

// nodeFiles are the files that a node needs. gossipKey is empty where the CA's
// directory has none.
type nodeFiles struct{ cert, key, ca, gossipKey string }

func issueNode(caDir, node string, addresses []string, out string) (nodeFiles, error) {
	ca, err := transport.ReadPair(caDir, caBase)
	if err != nil {
		return nodeFiles{}, fmt.Errorf(`read the certificate authority in %s (see "holdfast ca create"): %w`, caDir, err)
	}
	gossipKey, err := os.ReadFile(filepath.Join(caDir, gossipKeyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nodeFiles{}, fmt.Errorf("read the gossip key: %w", err)
	}
	pair, err := transport.IssueNode(ca, node, addresses, time.Now())
	if err != nil {
		return nodeFiles{}, fmt.Errorf("issue certificate: %w", err)
	}
	if err := makeDir(out); err != nil {
		return nodeFiles{}, err
	}
	files := nodeFiles{ca: filepath.Join(out, caBase+".crt")}
	if gossipKey != nil {
		files.gossipKey = filepath.Join(out, gossipKeyFile)
	}
	for _, name := range []string{files.ca, files.gossipKey} {
		if err := absent(name, out); err != nil {
			return nodeFiles{}, err
		}
	}
	if files.cert, files.key, err = pair.WriteFiles(out, nodeBase); err != nil {
		return nodeFiles{}, taken(err, out)
	}
	if err := writeNew(files.ca, ca.Cert, 0o644); err != nil {
		return nodeFiles{}, err
	}
	if gossipKey != nil {
		if err := writeNew(files.gossipKey, gossipKey, 0o600); err != nil {
			return nodeFiles{}, err
		}
	}
	return files, nil
}

// nameBytesMax is the longest name that a node's configuration may have.
const nameBytesMax = 32

func checkName(name string) error {
	if len(name) > nameBytesMax {
		return fmt.Errorf("%q has %d characters: use at most %d", name, len(name), nameBytesMax)
	}
	return transport.CheckName(name)
}

// required refuses a command line without one of the flags. cobra's own check
// would come before ours of the arguments, with another exit status.
func required(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if f := cmd.Flags().Lookup(name); f.Value.String() == "" {
			return usage(cmd, "--%s is missing", name)
		}
	}
	return nil
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// absent refuses a directory that has the file already, before anything is
// written to it.
func absent(file, dir string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Lstat(file); err == nil {
		return taken(fmt.Errorf("write %s: %w", file, fs.ErrExist), dir)
	}
	return nil
}

func taken(err error, dir string) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: nothing in %s was changed; choose another directory", err, dir)
	}
	return err
}
