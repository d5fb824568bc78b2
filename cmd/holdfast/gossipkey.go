package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
)

// gossipKeyBytes is the length of a gossip key: AES-256.
const gossipKeyBytes = 32

func (a *app) gossipKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gossip-key [FILE]",
		Short: "Make the key that gossip between the nodes is encrypted with",
		Long: `Make a new gossip key: 32 random bytes in base64. It is written to FILE, which only
its owner may read and which must not exist yet, or else to standard output. All
nodes of a cluster have the same one. "holdfast ca create" has made one already.`,
		Example: `  holdfast gossip-key /etc/holdfast/gossip.key`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, "unexpected argument %q", args[1])
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				_, err := a.out.WriteString(newGossipKey())
				return err
			}
			if err := writeGossipKey(args[0]); err != nil {
				return err
			}
			return a.done(fmt.Sprintf("Made %s.", args[0]), map[string]any{"gossip_key_file": args[0]})
		},
	}
}

func newGossipKey() string {
	key := make([]byte, gossipKeyBytes)
	_, _ = rand.Read(key) // never fails: it ends the process instead
	return base64.StdEncoding.EncodeToString(key) + "\n"
}

func writeGossipKey(file string) error {
	return writeNew(file, []byte(newGossipKey()), 0o600)
}

// writeNew writes a file that must not exist yet.
func writeNew(file string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already, and is not overwritten: choose another name", file)
	}
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, errors.Join(err, os.Remove(file)))
	}
	return nil
}
