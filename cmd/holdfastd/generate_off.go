//go:build !rig

package main

import (
	"context"
	"log/slog"

	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// generate does nothing but in builds for benchmarks, see package generator.
func generate(context.Context, *node.Node, *slog.Logger) error { return nil }
