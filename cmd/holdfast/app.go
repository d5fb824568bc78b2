package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// The exit statuses, after sysexits.h.
const (
	exitDone        = 0
	exitFailure     = 1
	exitUsage       = 64
	exitUnavailable = 69
	exitTryAgain    = 75
	exitInterrupted = 130
)

// defaultSocket is where holdfastd listens unless it is told otherwise.
const defaultSocket = "/run/holdfast/admin.sock"

// timeoutDefault is longer than a daemon tries to have a change committed, so
// that its own answer, which says more, comes first.
const timeoutDefault = 30 * time.Second

// An app is one run of the command.
type app struct {
	in     io.Reader
	stdout io.Writer     // what out writes to
	out    *bufio.Writer // buffered: a table is printed whole or not at all
	errOut io.Writer

	socket  string
	output  string
	timeout time.Duration
}

// run executes one command line and returns its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, stdout: stdout, out: bufio.NewWriter(stdout), errOut: stderr}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.out) // for --help
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if flushErr := a.out.Flush(); flushErr != nil && err == nil {
		err = flushErr
	}
	return a.report(ctx, err)
}

// report prints an error and returns the exit status that it deserves.
func (a *app) report(ctx context.Context, err error) int {
	var usage *usageError
	var failed *callError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, syscall.EPIPE):
		return exitFailure // the reader has gone: there is nobody to tell
	case ctx.Err() != nil:
		a.complain("interrupted: a change that was asked for may still take effect")
		return exitInterrupted
	case errors.As(err, &usage):
		a.complain("%s", usage.text)
		fmt.Fprintf(a.errOut, "\n%s", usage.help)
		return exitUsage
	case errors.As(err, &failed):
		a.complain("%s", failed.text)
		return failed.exit
	}
	a.complain("%v", err)
	return exitFailure
}

// complain prints one message. What it quotes may be hostile.
func (a *app) complain(format string, args ...any) {
	fmt.Fprintf(a.errOut, "holdfast: %s\n", escapeLines(fmt.Sprintf(format, args...)))
}

// A usageError is a command line that makes no sense.
type usageError struct{ text, help string }

func (e *usageError) Error() string { return e.text }

func usage(cmd *cobra.Command, format string, args ...any) error {
	help := fmt.Sprintf("Usage: %s\nSee %q.\n", cmd.UseLine(), cmd.CommandPath()+" --help")
	return &usageError{text: fmt.Sprintf(format, args...), help: help}
}

// outputs are the values of --output.
var outputs = []string{"table", "json"}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Administer a Holdfast cluster",
		Long: `Administer a Holdfast cluster: replicated backup MX hosts that hold mail for a
primary while it cannot take it.

Commands talk to holdfastd on this host over its admin socket, which root and the
daemon's own user may open. Any node answers for the whole cluster: changes are
forwarded to the leader, and answers say how old they may be. The commands "ca"
and "gossip-key" need no daemon.

Exit status: 0 done; 64 wrong usage; 69 no daemon at the socket; 75 nothing was
changed, worth trying again; 130 interrupted; 1 anything else.`,
		Example: `  holdfast status
  holdfast domain put example.test --to mail.example.test:25
  holdfast queue list --domain example.test -o json`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(outputs, a.output) {
				return usage(cmd, "--output %q: use %s", a.output, strings.Join(outputs, " or "))
			}
			if a.timeout <= 0 {
				return usage(cmd, "--timeout %s: use a duration above zero", a.timeout)
			}
			if a.socket == "" {
				return usage(cmd, "--socket is empty: give the path of the daemon's admin_socket")
			}
			return nil
		},
	}
	socket := os.Getenv("HOLDFAST_SOCKET")
	if socket == "" {
		socket = defaultSocket
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.socket, "socket", socket, "the daemon's admin `socket` (also $HOLDFAST_SOCKET)")
	flags.StringVarP(&a.output, "output", "o", "table", "output `format`: table, for people, or json, for programs")
	flags.DurationVar(&a.timeout, "timeout", timeoutDefault, "how long to wait for the daemon")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.CompletionOptions.HiddenDefaultCmd = true
	group(root, a.statusCommand(), a.membersCommand(), a.domainCommand(), a.queueCommand(), a.scrubCommand(), a.compareCommand(), a.caCommand(), a.gossipKeyCommand())
	return root
}

// group makes a command that does nothing but hold others: without one of them,
// or with an unknown one, it is a usage error.
func group(parent *cobra.Command, children ...*cobra.Command) *cobra.Command {
	parent.AddCommand(children...)
	parent.Args = cobra.ArbitraryArgs
	parent.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			e := usage(cmd, "a command is missing").(*usageError)
			e.help = cmd.UsageString()
			return e
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			text += ": did you mean " + strings.Join(similar, " or ") + "?"
		}
		return usage(cmd, "%s", text)
	}
	parent.SuggestionsMinimumDistance = 2
	return parent
}

// exactly accepts the named arguments and no others.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage(cmd, "%s is missing", names[len(args)])
		case len(args) > len(names):
			return usage(cmd, "unexpected argument %q", args[len(names)])
		}
		return nil
	}
}
