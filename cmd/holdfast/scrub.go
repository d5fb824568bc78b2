package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// scrubLook is how often "scrub" looks how far it is.
const scrubLook = time.Second

func (a *app) scrubCommand() *cobra.Command {
	var node string
	var stop, detach bool
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Read the bodies that a node holds, to find damaged ones",
		Long: `Read all bodies of queued and held messages that a node holds, and compare them
with their digests. One that is damaged is fetched again from another node. Each
node does this every night by itself, between one and five o'clock of its own
clock, one node after another; it reads at most scrub_rate octets a second.

Shows how far it is until it has ended. Ctrl-C ends only the showing: the scrub
goes on, and "holdfast status" shows what came of it. --stop ends it.

The exit status is 1 where something damaged could not be repaired.`,
		Example: `  holdfast scrub
  holdfast scrub --node mx2 --detach
  holdfast scrub --node mx2 --stop`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if stop && detach {
				return usage(cmd, "--stop and --detach are given together: use one")
			}
			if cmd.Flags().Changed("node") && node == "" {
				return usage(cmd, "--node is empty: give the name of a node")
			}
			if stop {
				r, err := a.scrubCall(cmd, node, adminpb.ScrubRequest_STOP)
				if err != nil {
					return err
				}
				return a.scrubbed(r)
			}
			return a.runScrub(cmd, node, detach)
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "the `name` of the node; this one if it is not given")
	cmd.Flags().BoolVar(&stop, "stop", false, "end the scrub that is running")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	return cmd
}

// scrubbed prints how far a scrub is.
func (a *app) scrubbed(r *adminpb.ScrubReply) error {
	if a.output == "json" {
		return writeJSON(a.out, map[string]any{"node": r.GetNode(), "scrub": toScrubJSON(r.GetScrub())})
	}
	fmt.Fprintf(a.out, "%s: %s\n", escape(r.GetNode()), escape(scrub(r.GetScrub())))
	return nil
}

func (a *app) scrubCall(cmd *cobra.Command, node string, action adminpb.ScrubRequest_Action) (r *adminpb.ScrubReply, err error) {
	err = a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) (err error) {
		r, err = c.Scrub(ctx, &adminpb.ScrubRequest{Node: node, Action: action})
		return err
	})
	return r, err
}

// runScrub begins a scrub and shows how far it is until it has ended.
func (a *app) runScrub(cmd *cobra.Command, node string, detach bool) error {
	r, err := a.scrubCall(cmd, node, adminpb.ScrubRequest_START)
	if err != nil {
		return err
	}
	began, shown := r.GetScrub().GetBeganUnix(), ""
	for !detach && r.GetScrub().GetRunning() {
		if text := scrub(r.GetScrub()); a.output != "json" && text != shown {
			fmt.Fprintf(a.errOut, "%s: %s\n", escape(r.GetNode()), escape(text))
			shown = text
		}
		select {
		case <-time.After(scrubLook):
		case <-cmd.Context().Done():
			a.complain("the scrub of %s goes on; see \"holdfast status\", or end it with --stop", r.GetNode())
			return cmd.Context().Err()
		}
		if r, err = a.scrubCall(cmd, node, adminpb.ScrubRequest_LOOK); err != nil {
			return err
		}
		if r.GetScrub().GetBeganUnix() != began {
			return &callError{exit: exitFailure, text: fmt.Sprintf("node %s was started anew before its scrub ended: begin again", r.GetNode())}
		}
	}
	if err := a.scrubbed(r); err != nil {
		return err
	}
	if s := r.GetScrub(); !s.GetRunning() && (s.GetBad() > s.GetRepaired() || s.GetUnread() > 0) {
		return &callError{exit: exitFailure, text: "not everything could be repaired: see \"holdfast status\""}
	}
	return nil
}
