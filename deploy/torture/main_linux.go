package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/deploy/cell"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// The exit statuses, as those of holdfast-bench.
const (
	exitDone        = 0
	exitFailure     = 1
	exitUsage       = 64
	exitInterrupted = 130
)

// options are what a run is told.
type options struct {
	seed    uint64
	length  time.Duration
	bin     string
	out     string // of the report, and of logs of a run that failed
	only    []schedule.Kind
	strict  bool // a kind of fault that is left out is an error
	summary string
	keep    bool // ledgers and logs of a run that passed, too
	nodes   int
	peer    schedule.Peer
	told    []string // what was not the seed's choice, as make wants it
	// unpacked is where .ci/mailservers unpacked what is not installed.
	unpacked string
}

func main() { os.Exit(start(os.Args[1:])) }

func start(args []string) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return exitDone
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		return exitUsage
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	if !cell.Inside() {
		return enter(ends)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	// What is left to do when something hangs: with this process its cell ends.
	limit := o.length + overtime
	r := &run{o: o, begin: time.Now(), dir: os.Getenv(dirKey), ends: newEnds()}
	time.AfterFunc(limit, func() {
		fmt.Fprintf(os.Stderr, "torture: the run took more than %v (%v)\n", limit, r.keep())
		os.Exit(exitFailure)
	})
	err = r.do(ctx)
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "torture: interrupted")
		return exitInterrupted
	default:
		fmt.Fprintln(os.Stderr, "torture:", err)
		fmt.Fprintf(os.Stderr, "torture: again with: %s\n", o.again())
		return exitFailure
	}
}

// overtime is how much longer than told a run may take: to start, to mend what is broken
// last, for its senders to come through, to drain, and to judge. It usually takes a
// minute.
const overtime = openTime + hydrateTime + 2*settleTime + 2*resumeTime + 2*giveUpTime + reportsTime + settleTime + time.Minute

// dirKey names, in the environment, the directory of a run. It is removed from
// outside the cell, when its mounts are gone, however the run ended.
const dirKey = "HOLDFAST_TORTURE_DIR"

func enter(pass []os.Signal) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "torture: this needs root, for namespaces and mounts")
		return exitFailure
	}
	dir, err := os.MkdirTemp("", "holdfast-torture-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		return exitFailure
	}
	defer os.RemoveAll(dir)
	removeOld(filepath.Dir(dir))
	own, err := lock(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		return exitFailure
	}
	defer own.Close()
	os.Setenv(dirKey, dir)
	err = cell.Enter(pass...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return max(exit.ExitCode(), exitFailure)
	default:
		fmt.Fprintln(os.Stderr, "torture: enter namespaces:", err)
		return exitFailure
	}
}

// lock has a run's directory be told from one that was left behind.
func lock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// oldAge is how old a directory that nobody has locked must be to be called left behind:
// a run locks its own at once.
const oldAge = time.Minute

// removeOld removes directories of runs that were killed by SIGKILL, which could not do
// so themselves. All else of a run ends with it.
func removeOld(in string) {
	dirs, _ := filepath.Glob(filepath.Join(in, "holdfast-torture-*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < oldAge {
			continue
		}
		if f, err := lock(dir); err == nil {
			fmt.Fprintf(os.Stderr, "torture: removing %s, which a run left that was killed\n", dir)
			_ = os.RemoveAll(dir)
			_ = f.Close()
		}
	}
}

func parse(args []string) (options, error) {
	o := options{}
	flags := flag.NewFlagSet("torture", flag.ContinueOnError)
	minutes := flags.Float64("minutes", 2, "how long things break; starting and draining come besides")
	only := flags.String("only", "", "kinds of faults, separated by commas, instead of the seed's choice")
	list := flags.Bool("list", false, "list the kinds of faults with what each does, and end")
	flags.IntVar(&o.nodes, "nodes", 0, "3 or 5 nodes, instead of the seed's choice")
	peer := flags.String("peer", "", "a real mail server, none or one of postfix, exim, opensmtpd, and perhaps :primary or :sender, instead of the seed's choice")
	flags.StringVar(&o.unpacked, "mailservers", os.Getenv("HOLDFAST_MAILSERVERS"), "directory that .ci/mailservers unpacked into (default BIN/mailservers)")
	plan := flags.Bool("plan", false, "show what the seed chooses, and end")
	flags.Uint64Var(&o.seed, "seed", 1, "faults, victims and messages come from it")
	flags.StringVar(&o.bin, "bin", "bin", "directory of holdfastd and holdfast")
	flags.StringVar(&o.out, "out", "", "directory of the report, and of all logs of a run that failed (default BIN/torture/seed-N)")
	flags.BoolVar(&o.strict, "strict", os.Getenv("CI") == "true", "fail where the machine lacks what a kind of fault needs")
	flags.BoolVar(&o.keep, "keep", false, "keep ledgers and logs of a run that passed, too")
	flags.StringVar(&o.summary, "summary", "", "append a line with the counts of the run to this `file`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if *list {
		listKinds(os.Stdout)
		return o, flag.ErrHelp
	}
	if flags.NArg() > 0 || *minutes <= 0 || *minutes > 60 {
		return o, errors.New("want -minutes from 0 to 60, and no arguments")
	}
	for _, name := range strings.FieldsFunc(*only, func(r rune) bool { return r == ',' }) {
		kind := schedule.Kind(strings.TrimSpace(name))
		if !kind.Known() {
			return o, fmt.Errorf("no kind of fault %q: -list lists them", kind)
		}
		o.only = append(o.only, kind)
	}
	switch o.nodes {
	case 0:
		o.nodes = schedule.NodesOf(o.seed)
	case 3, 5:
		o.told = append(o.told, fmt.Sprintf("NODES=%d", o.nodes))
	default:
		return o, errors.New("want -nodes 3 or 5")
	}
	o.peer = schedule.PeerOf(o.seed)
	if *peer != "" {
		var err error
		if o.peer, err = schedule.ParsePeer(*peer, o.seed); err != nil {
			return o, err
		}
		o.told = append(o.told, "PEER="+o.peer.String())
	}
	o.length = time.Duration(*minutes * float64(time.Minute))
	if *plan {
		fmt.Printf("%d nodes, mail server: %v\n", o.nodes, o.peer)
		for _, round := range schedule.New(o.seed, o.nodes, o.length, o.only...).Rounds {
			fmt.Println(round)
		}
		return o, flag.ErrHelp
	}
	if o.unpacked == "" {
		o.unpacked = filepath.Join(o.bin, "mailservers")
	}
	if o.out == "" {
		o.out = filepath.Join(o.bin, "torture", fmt.Sprintf("seed-%d", o.seed))
	}
	return o, nil
}

// listKinds lists the kinds of faults, each with what it does and what it needs of the
// machine.
func listKinds(to io.Writer) {
	columns := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, k := range schedule.Kinds() {
		needs := ""
		for i, n := range k.Needs() {
			needs += []string{" (needs ", ", "}[min(i, 1)] + string(n)
		}
		if needs != "" {
			needs += ")"
		}
		fmt.Fprintf(columns, "%s\t%s%s\n", k, k.Does(), needs)
	}
	_ = columns.Flush()
}

// again is how to repeat the run.
func (o options) again() string {
	again := fmt.Sprintf("make torture SEED=%d MINUTES=%g", o.seed, o.length.Minutes())
	for _, t := range o.told {
		again += " " + t
	}
	if len(o.only) == 0 {
		return again
	}
	var names []string
	for _, k := range o.only {
		names = append(names, string(k))
	}
	return again + fmt.Sprintf(" ONLY='%s'", strings.Join(names, ","))
}
