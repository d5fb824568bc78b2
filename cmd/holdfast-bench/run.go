package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) runCommand() *cobra.Command {
	o := sceneOptions{name: "run", starttls: true}
	cmd := &cobra.Command{
		Use:   "run [--bin DIR] [--keep]",
		Short: "Run three nodes on this host until Ctrl-C, for you to try",
		Long: `Run three nodes on this host until Ctrl-C. Their primary is down: what they take,
they hold. Prints what to try.`,
		Example: `  holdfast-bench run --bin bin`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.stay(cmd.Context(), o) },
	}
	sceneFlags(cmd, &o)
	return cmd
}

// stay keeps a cluster up until ctx ends, which is its good end.
func (a *app) stay(ctx context.Context, o sceneOptions) (err error) {
	s, err := a.openScene(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = s.ending(err) }()
	a.printInvitation(s)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.revive(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			a.say("stopping")
			return nil
		}
	}
}

// revive starts each node again that has ended, after a while, as a service
// manager does.
func (s *scene) revive(ctx context.Context) error {
	for _, n := range s.fleet.Nodes {
		fallen := n.TakeFallen()
		if fallen == nil {
			continue
		}
		cause, _, _ := strings.Cut(fallen.Error(), "\n") // the rest is its log
		s.a.say("%s; it starts again in %v", cause, reviveAfter)
		select {
		case <-time.After(reviveAfter):
		case <-ctx.Done():
			return nil
		}
		if err := n.Start(); err != nil {
			return err
		}
		s.a.say("%s starts again", n.Name)
	}
	return nil
}

// reviveAfter is long enough to see what a cluster does without a node.
const reviveAfter = 5 * time.Second

func (a *app) printInvitation(s *scene) {
	first := s.fleet.Nodes[0]
	host, port, _ := net.SplitHostPort(first.SMTP)
	holdfast := filepath.Join(s.o.bin, "holdfast") + " --socket " + first.Socket
	fmt.Fprintln(a.out, "\nSMTP and process of each node:")
	for _, n := range s.fleet.Nodes {
		fmt.Fprintf(a.out, "  %s  %s  pid %d  log %s\n", n.Name, n.SMTP, n.PID(), n.Log)
	}
	fmt.Fprintf(a.out, `
Send a message:
  swaks --server %[1]s --port %[2]s --from you@sender.test --to user@example.test
  printf 'Subject: hello\r\n\r\nhello\r\n' | curl -sS --upload-file - --mail-from you@sender.test --mail-rcpt user@example.test smtp://%[3]s

Look at it:
  %[4]s status
  %[4]s members
  %[4]s queue list
  %[4]s domain list

Bring a primary up, which takes it within half a minute; or at once, after a flush:
  %[5]s sink --listen %[6]s --ledger %[7]s
  %[4]s domain flush example.test

Kill a node (kill -9 PID): the others go on, and it starts again after %[8]v. Ctrl-C ends it all.

`, host, port, first.SMTP, holdfast, filepath.Join(s.o.bin, "holdfast-bench"), s.primary, filepath.Join(s.dir, "arrived.jsonl"), reviveAfter)
}
