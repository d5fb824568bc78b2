// Command holdfast-bench drives mail through Holdfast and judges what comes
// out: it sends, it plays the primary, it checks one against the other, and it
// runs whole clusters on this host to show and to prove what a 250 means.
//
// Every run that moves mail ends in one line,
//
//	accepted=N delivered=N lost=0 altered=0 duplicates=D
//
// where N counts pairs of a message and a recipient that got a 250, and D the
// copies beyond the first. Exit status: 0 all promises held, 1 one did not or
// the run could not be finished, 64 wrong usage, 130 interrupted. Progress goes
// to standard error and the results to standard output.
//
// It knows a cluster by its public interfaces only: SMTP, the holdfast command,
// configuration files, and signals.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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
	exitInterrupted = 130
)

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// An app is one run of the command.
type app struct {
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	begin  time.Time
	quiet  bool // say nothing
}

// run executes one command line and returns its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, errOut: stderr, begin: time.Now()}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout) // for --help
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var wrong *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "holdfast-bench: %s\n\n%s", wrong.text, wrong.help)
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "holdfast-bench: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "holdfast-bench:", err)
	return exitFailure
}

// A usageError is a command line that makes no sense.
type usageError struct{ text, help string }

func (e *usageError) Error() string { return e.text }

func usage(cmd *cobra.Command, format string, args ...any) error {
	help := fmt.Sprintf("Usage: %s\nSee %q.\n", cmd.UseLine(), cmd.CommandPath()+" --help")
	return &usageError{text: fmt.Sprintf(format, args...), help: help}
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast-bench",
		Short: "Drive mail through Holdfast and check what comes out",
		Long: `Drive mail through Holdfast and check what comes out.

"demo" tells the whole story on this host; "run" leaves its three nodes to you;
"kills" is the same under twenty times SIGKILL. "send", "sink" and "check" do the
parts against any servers: the first two write ledgers, the third compares them.

Exit status: 0 all promises held; 1 one did not, or the run could not be
finished; 64 wrong usage; 130 interrupted.`,
		Example: `  holdfast-bench demo --bin bin
  holdfast-bench sink --listen 127.0.0.1:2526 --ledger arrived.jsonl
  holdfast-bench send --to 127.0.0.1:2525 --count 1000 --size mix --ledger sent.jsonl
  holdfast-bench check --sent sent.jsonl --arrived arrived.jsonl`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				e := usage(cmd, "a command is missing").(*usageError)
				e.help = cmd.UsageString()
				return e
			}
			return usage(cmd, "unknown command %q", args[0])
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.demoCommand(), a.runCommand(), a.killsCommand(), a.sendCommand(), a.sinkCommand(), a.checkCommand(), a.acceptCommand(), a.versusCommand(), a.slowDiskCommand(), a.costsCommand(), a.jetStreamCommand(), a.millionCommand(), a.drainCommand(), a.flapCommand())
	return root
}

// noArguments refuses arguments, as usage.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(cmd, "unexpected argument %q", args[0])
	}
	return nil
}

// say prints a line of progress.
func (a *app) say(format string, args ...any) {
	if a.quiet {
		return
	}
	fmt.Fprintf(a.errOut, "[%5.1fs] %s\n", time.Since(a.begin).Seconds(), fmt.Sprintf(format, args...))
}

// outputFlag adds --output.
func outputFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "output", "o", "text", "output `format`: text or json")
}

// oneOf returns a usage error unless value is one of the words.
func oneOf[W ~string](cmd *cobra.Command, flag, value string, words ...W) error {
	if slices.Contains(words, W(value)) {
		return nil
	}
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = string(w)
	}
	return usage(cmd, "--%s %q: use %s", flag, value, strings.Join(names, ", "))
}
