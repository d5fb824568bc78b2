// Command holdfastd runs one Holdfast node.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// Exit codes, after sysexits.h.
const (
	exitUsage   = 64
	exitFailure = 70 // the node could not start, or could not go on
	exitDisk    = 74 // a disk failed: what it holds is not to be trusted unread
	exitConfig  = 78
)

// stopPatience bounds a clean shutdown. A service manager's own patience is
// usually 90 s.
const stopPatience = 30 * time.Second

const (
	// failPatience is the same for a node that has failed: it can finish
	// nothing, and the others have what it had.
	failPatience = 3 * time.Second
	// hangPatience is how much longer than planned a shutdown may take before
	// the process ends without it.
	hangPatience = 10 * time.Second
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// An exitError carries the exit code that belongs to an error.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) Unwrap() error { return e.err }

func run(args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "holdfastd",
		Short:         "Holdfast's daemon: one node of a replicated backup MX",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return exitError{exitUsage, errors.New("say what to do: run, check or example (--help explains)")}
		},
	}
	root.AddCommand(runCommand(stderr), checkCommand(stdout), exampleCommand(stdout))
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(stderr, "holdfastd:", config.Printable(strings.TrimSuffix(line, "\n")))
	}
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return exitUsage // what cobra refuses is a matter of usage
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "/etc/holdfast/holdfast.toml", "the configuration `FILE`")
}

// load reads a configuration file and looks at what it names.
func load(file string, warn io.Writer) (*config.Config, error) {
	c, err := config.Load(file)
	if err != nil {
		return nil, exitError{exitConfig, err}
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(warn, "warning:", w)
	}
	if err := node.Check(c); err != nil {
		return nil, exitError{exitConfig, err}
	}
	return c, nil
}

func runCommand(stderr io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Run the node in the foreground until SIGTERM or SIGINT",
		Args:    cobra.NoArgs,
		Example: "  holdfastd run --config /etc/holdfast/holdfast.toml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := coarsenTimers(); err != nil {
				fmt.Fprintln(stderr, "warning: timers stay fine, which takes more processor time:", err)
			}
			c, err := load(file, stderr)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, logger(c, stderr))
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func checkCommand(stdout io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration file and what it names; exit 78 if something is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := load(file, stdout)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "%s: node %s of cluster %s: nothing wrong found\n", config.Printable(file), c.Node, c.Cluster)
			return nil
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func exampleCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "example",
		Short: "Print a configuration file with every key, its default and its meaning",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := io.WriteString(stdout, config.Example())
			return err
		},
	}
}

func logger(c *config.Config, w io.Writer) *slog.Logger {
	var handler slog.Handler = slog.NewTextHandler(w, nil)
	if c.LogFormat == config.LogJSON {
		handler = slog.NewJSONHandler(w, nil)
	}
	return slog.New(handler).With("node", string(c.Node))
}

// serve runs the node until a signal comes or it fails.
func serve(ctx context.Context, c *config.Config, log *slog.Logger) error {
	if ctx == nil {
		ctx = context.Background()
	}
	// A second signal ends the process at once: nothing that got a 250 depends
	// on a clean end.
	ctx, unhook := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer unhook()
	// From before the start on, which reads the whole queue.
	collecting, collected := context.WithCancel(context.Background())
	defer collected()
	go collectGarbage(collecting)
	n, err := node.Start(ctx, c, node.System(log))
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while starting
		}
		return exitError{exitCode(err), err}
	}
	var failure error
	if err := generate(ctx, n, log); err != nil {
		log.Error("no payloads will be made", "cause", err)
	}
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case <-n.Failed():
		failure = n.Err()
		log.Error("this node cannot go on", "cause", failure)
	}
	unhook()
	patience := stopPatience
	if failure != nil {
		patience = failPatience
	}
	stop, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A disk that hangs holds up whoever waits for it, for ever.
	overdue := time.AfterFunc(patience+hangPatience, func() {
		log.Error("something hangs; ending all the same")
		os.Exit(max(exitFailure, exitCode(failure)))
	})
	defer overdue.Stop()
	if err := n.Close(stop); err != nil {
		log.Warn("not stopped cleanly", "cause", err)
	}
	if failure != nil {
		return exitError{exitCode(failure), failure}
	}
	log.Info("stopped")
	return nil
}

func exitCode(err error) int {
	if errors.Is(err, node.ErrDisk) {
		return exitDisk
	}
	if errors.Is(err, node.ErrConfig) {
		return exitConfig
	}
	return exitFailure
}
