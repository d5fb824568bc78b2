package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

func (a *app) checkCommand() *cobra.Command {
	var sent, arrived []string
	var output string
	cmd := &cobra.Command{
		Use:   "check --sent FILE --arrived FILE",
		Short: "Compare what was acknowledged with what arrived",
		Long: `Compare what "send" recorded with what "sink" recorded. Faults are named one by
one, and the last line sums up:

  accepted    pairs of a message and a recipient that got a 250
  delivered   of those, how many arrived as they were sent
  lost        of those, how many did not arrive
  altered     pairs that arrived with other octets, or from another sender
  duplicates  copies beyond the first

Also a fault, and named: what was refused and arrived all the same, and what was
never sent.`,
		Example: `  holdfast-bench check --sent sent.jsonl --arrived arrived.jsonl`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(sent) == 0 || len(arrived) == 0 {
				return usage(cmd, "--sent and --arrived are needed")
			}
			if err := oneOf(cmd, "output", output, "text", "json"); err != nil {
				return err
			}
			book, err := ledger.Load(append(sent, arrived...)...)
			if err != nil {
				return err
			}
			report := book.Check()
			if output == "json" {
				if err := json.NewEncoder(a.out).Encode(report); err != nil {
					return err
				}
				return faults(report)
			}
			a.printReport(report)
			return faults(report)
		},
	}
	cmd.Flags().StringSliceVar(&sent, "sent", nil, "`file` that \"send\" wrote; may be repeated")
	cmd.Flags().StringSliceVar(&arrived, "arrived", nil, "`file` that \"sink\" wrote; may be repeated")
	outputFlag(cmd, &output)
	return cmd
}

// printReport prints the cases, what is allowed but worth knowing, and the line
// that sums up, which comes last.
func (a *app) printReport(r ledger.Report) {
	for _, c := range r.Cases {
		fmt.Fprintln(a.out, c)
	}
	if r.Unanswered+r.NotAccepted+r.Refused+r.Unexpected > 0 {
		fmt.Fprintf(a.out, "unanswered=%d (of those arrived=%d) not-accepted=%d delivered-though-refused=%d unexpected=%d\n",
			r.Unanswered, r.UnansweredDelivered, r.NotAccepted, r.Refused, r.Unexpected)
	}
	fmt.Fprintln(a.out, r)
}

// errFaults says that the ledger does not balance.
var errFaults = errors.New("a promise was broken")

func faults(r ledger.Report) error {
	if r.OK() {
		return nil
	}
	return errFaults
}
