package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The bounds of "queue list".
const (
	limitDefault = 100
	limitMax     = 100_000
	pageMax      = 1000 // the daemon's largest page
)

// states are the values of --state.
var states = map[string]adminpb.RecipientState{
	"queued":    adminpb.RecipientState_RECIPIENT_STATE_QUEUED,
	"held":      adminpb.RecipientState_RECIPIENT_STATE_HELD,
	"delivered": adminpb.RecipientState_RECIPIENT_STATE_DELIVERED,
	"failed":    adminpb.RecipientState_RECIPIENT_STATE_FAILED,
	"removed":   adminpb.RecipientState_RECIPIENT_STATE_REMOVED,
}

// stateWord is the state of a recipient in one word.
func stateWord(s adminpb.RecipientState) string {
	for word, state := range states {
		if state == s {
			return word
		}
	}
	return "unknown"
}

func (a *app) queueCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "queue",
		Short: "Look at the queue, hold, release, export and remove messages",
		Long: `Look at the queue and change it. A message is named by its queue id, as it stands
in the reply to the sender, in Received fields and in every log line.`,
		Example: `  holdfast queue list --state held
  holdfast queue show 01JZ0000000000000000000000`,
	}, a.queueListCommand(), a.queueShowCommand(), a.queueExportCommand(), a.queueHoldCommand(), a.queueReleaseCommand(), a.queueRemoveCommand())
}

func (a *app) queueListCommand() *cobra.Command {
	var domain, state, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List messages, the oldest first",
		Long: `List messages in the order in which they were accepted: those queued or held,
unless --state asks for others. Ended messages are remembered for about a day.`,
		Example: `  holdfast queue list
  holdfast queue list --domain example.test --state held
  holdfast queue list --limit 1000 -o json | jq -r '.messages[].queue_id'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := &adminpb.ListQueueRequest{}
			if cmd.Flags().Changed("domain") {
				d, err := mail.ParseDomain(domain)
				if err != nil {
					return usage(cmd, "--domain: %v", err)
				}
				q.Domain = string(d)
			}
			if cmd.Flags().Changed("state") {
				s, ok := states[state]
				if !ok {
					return usage(cmd, "--state %q: use queued, held, delivered, failed or removed", state)
				}
				q.State = s
			}
			if cmd.Flags().Changed("after") {
				id, err := mail.ParseQueueID(after)
				if err != nil {
					return usage(cmd, "--after: %v", err)
				}
				q.PageToken = id.String()
			}
			if limit < 1 || limit > limitMax {
				return usage(cmd, "--limit %d: use a number from 1 to %d", limit, limitMax)
			}
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				return a.listQueue(ctx, c, q, limit)
			})
		},
	}
	cmd.Flags().StringVar(&domain, "domain", "", "only messages with a recipient in this relay `domain`")
	cmd.Flags().StringVar(&state, "state", "", "only messages with a recipient in this `state`: queued, held, delivered, failed, removed")
	cmd.Flags().IntVar(&limit, "limit", limitDefault, "list at most this `many`")
	cmd.Flags().StringVar(&after, "after", "", "go on behind this queue `id`")
	return cmd
}

// listQueue fetches pages until there are enough messages or no more.
func (a *app) listQueue(ctx context.Context, c adminpb.AdminServiceClient, q *adminpb.ListQueueRequest, limit int) error {
	var all []*adminpb.MessageSummary
	for {
		q.PageSize = int32(min(pageMax, limit-len(all)))
		page, err := c.ListQueue(ctx, q)
		if err != nil {
			return err
		}
		all = append(all, page.GetMessages()...)
		next := page.GetNextPageToken()
		if next != "" && len(all) < limit {
			q.PageToken = next
			continue
		}
		if a.output == "json" {
			return writeJSON(a.out, queueJSON{toSummariesJSON(all), next, staleMS(page.GetFreshness()), page.GetFreshness().GetQuorum()})
		}
		a.noteFreshness(page.GetFreshness())
		if err := a.printQueue(all); err != nil {
			return err
		}
		if next != "" {
			// The hint must not come before the table that it is about.
			if err := a.out.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(a.errOut, "There are more: go on with --after %s, or raise --limit.\n", escape(next))
		}
		return nil
	}
}

// onMessage runs a call about the message whose id is the only argument.
func (a *app) onMessage(run func(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		id, err := mail.ParseQueueID(args[0])
		if err != nil {
			return usage(cmd, "ID: %v", err)
		}
		return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error { return run(ctx, c, id) })
	}
}

func (a *app) queueShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show everything about one message but its content",
		Long: `Show a message's envelope, where it came from, and for each recipient what became
of it, the last reply, and what it waits for. The id of a repeat shows the message
that it repeats.`,
		Example: `  holdfast queue show 01JZ0000000000000000000000`,
		Args:    exactly("ID"),
		RunE: a.onMessage(func(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error {
			r, err := c.ShowMessage(ctx, &adminpb.ShowMessageRequest{QueueId: id.String()})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(a.out, toMessageJSON(r.GetMessage(), r.GetFreshness()))
			}
			a.noteFreshness(r.GetFreshness())
			return a.printMessage(id.String(), r.GetMessage())
		}),
	}
}

// mayStillArrive warns after Hold and Remove.
const mayStillArrive = "a node may have sent it already: it may still be delivered"

func (a *app) queueHoldCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "hold ID",
		Short: "Freeze a message until it is released",
		Long: `Freeze a message: no new attempt to deliver it begins until it is released. An
attempt that is under way may still deliver it; the answer says so.`,
		Example: `  holdfast queue hold 01JZ0000000000000000000000 --reason "asked by legal"`,
		Args:    exactly("ID"),
		RunE: a.onMessage(func(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error {
			r, err := c.HoldMessage(ctx, &adminpb.HoldMessageRequest{QueueId: id.String(), Reason: reason})
			if err != nil {
				return err
			}
			return a.doneMessage("Held "+id.String()+".", id, r.GetMayStillArrive())
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks later")
	return cmd
}

func (a *app) queueReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release ID",
		Short: "End the hold of a message, and try again what was refused",
		Long: `End the hold of a message: its recipients are queued again, also those that the
next hop refused.`,
		Example: `  holdfast queue release 01JZ0000000000000000000000
  holdfast queue list --domain example.test --state held --limit 100000 -o json |
      jq -r '.messages[].queue_id' | xargs -n 1 holdfast queue release`,
		Args: exactly("ID"),
		RunE: a.onMessage(func(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error {
			if _, err := c.ReleaseMessage(ctx, &adminpb.ReleaseMessageRequest{QueueId: id.String()}); err != nil {
				return err
			}
			return a.doneMessage("Released "+id.String()+".", id, false)
		}),
	}
}

func (a *app) queueRemoveCommand() *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Throw a message away",
		Long: `Throw a message away: it is not delivered, and nobody is told. This cannot be
undone. Asks first on a terminal; elsewhere --yes is needed.`,
		Example: `  holdfast queue remove 01JZ0000000000000000000000
  holdfast queue remove 01JZ0000000000000000000000 --yes`,
		Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := mail.ParseQueueID(args[0])
			if err != nil {
				return usage(cmd, "ID: %v", err)
			}
			if !sure && !isTerminal(a.in) {
				return usage(cmd, "standard input is no terminal to ask at: give --yes to remove %s", id)
			}
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				if !sure {
					if err := a.confirmRemoval(ctx, c, id); err != nil {
						return err
					}
				}
				r, err := c.RemoveMessage(ctx, &adminpb.RemoveMessageRequest{QueueId: id.String()})
				if err != nil {
					return err
				}
				return a.doneMessage("Removed "+id.String()+".", id, r.GetMayStillArrive())
			})
		},
	}
	cmd.Flags().BoolVar(&sure, "yes", false, "do not ask")
	return cmd
}

// confirmRemoval shows what is about to be lost, and asks.
func (a *app) confirmRemoval(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error {
	r, err := c.ShowMessage(ctx, &adminpb.ShowMessageRequest{QueueId: id.String()})
	if err != nil {
		return err
	}
	m := r.GetMessage()
	fmt.Fprintf(a.errOut, "Remove %s from <%s> to %s, %s? It will not be delivered, and nobody is told. [y/N] ",
		escape(m.GetQueueId()), escape(m.GetFrom()), escape(recipientsInBrief(m)), size(m.GetSize()))
	answer, err := readLine(ctx, a.in)
	if err != nil {
		return err
	}
	if !affirmative(answer) {
		return &callError{exit: exitFailure, text: "not removed"}
	}
	return nil
}

func affirmative(answer string) bool {
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}

func recipientsInBrief(m *adminpb.Message) string {
	if n := len(m.GetRecipients()); n != 1 {
		return fmt.Sprintf("%d recipients", n)
	}
	return "<" + m.GetRecipients()[0].GetPath() + ">"
}

// readLine reads one line, or gives up when ctx ends: a read of a terminal
// cannot be interrupted, but the process is about to end.
func readLine(ctx context.Context, in io.Reader) (string, error) {
	lines := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n') // no line is no yes
		lines <- line
	}()
	select {
	case line := <-lines:
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// isTerminal reports whether a person sits at a stream, which reads or writes: a
// character device that is not /dev/null.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}

// doneMessage prints the end of a change to one message.
func (a *app) doneMessage(text string, id mail.QueueID, arrives bool) error {
	if arrives {
		a.complain("warning: %s", mayStillArrive)
	}
	return a.done(text, map[string]any{"queue_id": id.String(), "may_still_arrive": arrives})
}
