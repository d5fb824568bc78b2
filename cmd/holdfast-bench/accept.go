package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// acceptFlags are the flags of "accept".
type acceptFlags struct {
	o      load.Options
	size   string
	output string
}

func (a *app) acceptCommand() *cobra.Command {
	var f acceptFlags
	cmd := &cobra.Command{
		Use:   "accept --to HOST:PORT[,HOST:PORT...]",
		Short: "Give mail to servers as fast as they accept it, and count",
		Long: `Give mail to servers as fast as they accept it: one message per connection, all
of them different, the sessions spread evenly over the servers. Nothing is tried
again and nothing recorded, so that the load itself takes little of the machine.

Sizes: 4k, 64k, 1m and 25m, or mix: 50 % of 4 to 16 KiB, 35 % to 100 KiB, 13 % to
1 MiB, 2 % to 10 MiB.`,
		Example: `  holdfast-bench accept --to 127.0.0.1:2525,127.0.0.1:2526 --size mix --sessions 100 --duration 10s`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(cmd, "size", f.size, load.AllSizes()...); err != nil {
				return err
			}
			if err := oneOf(cmd, "output", f.output, "text", "json"); err != nil {
				return err
			}
			if len(f.o.Targets) == 0 || f.o.Sessions < 1 || f.o.Duration <= 0 && f.o.Count <= 0 {
				return usage(cmd, "--to, --sessions and --duration or --count are needed")
			}
			f.o.Sizes = load.Sizes(f.size)
			if f.o.Run == "" {
				f.o.Run = strconv.FormatInt(a.begin.UnixNano(), 36)
			}
			if err := f.o.Check(); err != nil {
				return usage(cmd, "%v", err)
			}
			return a.accept(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.o.Targets, "to", nil, "the servers: `HOST:PORT`, several separated by commas")
	flags.IntVar(&f.o.Sessions, "sessions", 20, "connections at a time")
	flags.IntVar(&f.o.PerConnection, "per-connection", 1, "messages over one connection")
	flags.StringVar(&f.size, "size", string(load.Mix), "4k, 64k, 1m, 25m or mix")
	flags.DurationVar(&f.o.Duration, "duration", 10*time.Second, "how long")
	flags.IntVar(&f.o.Count, "count", 0, "end after so many messages; 0: when the time is over")
	flags.Int64Var(&f.o.BytesMax, "bytes-max", 16<<30, "end after so many octets")
	flags.StringVar(&f.o.Recipient, "recipient", "user@example.test", "the `address` that all mail goes to")
	flags.StringVar(&f.o.Sender, "sender", "sender@sender.example", "the `address` that all mail comes from")
	flags.StringVar(&f.o.Run, "run", "", "a `word` in each Message-ID, to tell runs apart; another one each time if not given")
	flags.Uint64Var(&f.o.Seed, "seed", 1, "sizes and octets come from it")
	outputFlag(cmd, &f.output)
	return cmd
}

func (a *app) accept(ctx context.Context, f acceptFlags) error {
	r, cause := load.Run(ctx, f.o) // with a cause, what there was until then
	var err error
	if f.output == "json" {
		err = json.NewEncoder(a.out).Encode(r)
	} else {
		_, err = fmt.Fprintln(a.out, r)
	}
	return errors.Join(cause, err)
}
