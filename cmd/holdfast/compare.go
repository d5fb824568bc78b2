package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// compareTimeout is longer than the daemon tries, since its own answer says more.
const compareTimeout = 150 * time.Second

func (a *app) compareCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "compare",
		Short: "Compare the nodes' copies of the queue",
		Long: `Ask every node for the digest (SHA-256) of its copy of the queue at one and the same
entry of the log, and compare them: the messages and what became of them, the relay
domains, the settings, all that is replicated but the bodies, for which there is
"holdfast scrub". Nodes that have applied the same entries have the same queue; where
they do not, one of them has a fault. It takes up to 10 seconds, or longer where very
many messages are queued, and disturbs nobody.

The exit status is 1 where they differ, or one of them does not answer. Nodes of
different versions may write the same queue differently: compare when all have the
same one.`,
		Example: `  holdfast compare
  holdfast compare -o json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("timeout") {
				a.timeout = compareTimeout
			}
			var r *adminpb.CompareReply
			err := a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) (err error) {
				r, err = c.Compare(ctx, &adminpb.CompareRequest{})
				return err
			})
			if err != nil {
				return err
			}
			return a.compared(r.GetCopies())
		},
	}
}

// A copyJSON is one node's copy of the queue.
type copyJSON struct {
	Node     string `json:"node"`
	Index    uint64 `json:"index,omitempty"`
	SHA256   string `json:"sha256,omitempty"`
	Messages uint64 `json:"messages"`
	Silent   string `json:"silent,omitempty"`
}

// compared prints the copies and says whether they are the same.
func (a *app) compared(copies []*adminpb.Copy) error {
	equal, silent := true, false
	all := make([]copyJSON, 0, len(copies))
	var first *adminpb.Copy
	for _, c := range copies {
		all = append(all, copyJSON{c.GetNode(), c.GetIndex(), hex.EncodeToString(c.GetSum()), c.GetMessages(), c.GetSilent()})
		switch {
		case c.GetSilent() != "":
			silent = true
		case first == nil:
			first = c
		case c.GetIndex() != first.GetIndex() || !slices.Equal(c.GetSum(), first.GetSum()):
			equal = false
		}
	}
	if a.output == "json" {
		if err := writeJSON(a.out, map[string]any{"equal": equal && !silent, "copies": all}); err != nil {
			return err
		}
	} else {
		t := newTable(a.out, "NODE", "ENTRY", "MESSAGES", "SHA-256")
		for _, c := range all {
			if c.Silent != "" {
				t.row(c.Node, "-", "-", c.Silent)
				continue
			}
			t.row(c.Node, strconv.FormatUint(c.Index, 10), strconv.FormatUint(c.Messages, 10), c.SHA256)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	switch {
	case !equal:
		return &callError{exit: exitFailure, text: "the copies differ. Keep all data directories as they are, and report this as a fault. " +
			"A node that differs from all others can be removed and added again with an empty data directory"}
	case silent:
		return &callError{exit: exitFailure, text: "not every node told its digest; see \"holdfast members\""}
	case len(copies) == 0:
		return &callError{exit: exitFailure, text: "this node knows no server of the cluster"}
	}
	if a.output != "json" {
		fmt.Fprintf(a.out, "%d copies, all the same\n", len(copies))
	}
	return nil
}
