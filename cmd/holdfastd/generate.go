//go:build rig

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/holdfast-mx/holdfast/cmd/holdfastd/generator"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// generatorSocket is the environment variable that names the unix socket at which
// a daemon of this build takes orders for payloads. Without it there is none.
const generatorSocket = "HOLDFAST_GENERATOR"

// generate takes orders until ctx ends.
func generate(ctx context.Context, n *node.Node, log *slog.Logger) error {
	path := os.Getenv(generatorSocket)
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the socket of an earlier generator: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("%s: %w", generatorSocket, err)
	}
	log.Warn("this build makes payloads of its own: keep it away from mail", "socket", path)
	go generator.Serve(ctx, l, n.Member(), n.Memory(), log.With("room", "generator"))
	return nil
}
