package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

const (
	// demoLetters makes a little more than 300 pairs of the shapes.
	demoLetters = 260
	demoSeed    = 1
	// demoTime ends a demo that does not get on.
	demoTime = 4 * time.Minute
)

func (a *app) demoCommand() *cobra.Command {
	o := sceneOptions{name: "demo", starttls: true}
	cmd := &cobra.Command{
		Use:   "demo [--bin DIR] [--keep]",
		Short: "Three nodes hold mail for a dead primary, lose their leader, and deliver",
		Long: `Tell the whole story on this host: three nodes take mail for a primary that is
down. In the middle their leader is killed with SIGKILL, mail goes on arriving, the
dead node returns, the primary comes up, everything drains, and what got a 250 is
compared with what arrived.`,
		Example: `  holdfast-bench demo --bin bin`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), o) },
	}
	sceneFlags(cmd, &o)
	return cmd
}

func binFlag(cmd *cobra.Command, o *sceneOptions) {
	cmd.Flags().StringVar(&o.bin, "bin", "bin", "the `directory` of holdfastd and holdfast")
}

func sceneFlags(cmd *cobra.Command, o *sceneOptions) {
	binFlag(cmd, o)
	cmd.Flags().BoolVar(&o.keep, "keep", false, "keep the nodes' files, logs and the ledger")
}

func (a *app) demo(ctx context.Context, o sceneOptions) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTime, fmt.Errorf("the demo took more than %v", demoTime))
	defer cancel()
	s, err := a.openScene(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = s.ending(err) }()
	if err := s.tellDemo(ctx); err != nil {
		return err
	}
	if err := s.fleet.Stop(); err != nil {
		return err
	}
	return s.judge()
}

// ending closes the scene after the story ended with err. A story that broke off
// while mail drained still gets the ledger's word.
func (s *scene) ending(err error) error {
	s.failed = s.failed || err != nil
	if s.server != nil && !s.judged {
		s.a.printReport(s.book.Check())
	}
	return errors.Join(err, s.close())
}

func (s *scene) tellDemo(ctx context.Context) error {
	stop := s.a.watch(ctx, func() string { return s.progress(ctx) })
	defer stop()
	letters := letter.New(letter.Options{Seed: demoSeed, Domains: domains(), Sizes: letter.ShapesOfMail, BigAt: demoLetters / 5})
	mail, err := s.mail(ctx, sender.Options{
		Letter: letters.Letter, Count: demoLetters, Sessions: 6, PerConnection: 7, Pause: 150 * time.Millisecond, Seed: demoSeed,
	})
	if err != nil {
		return err
	}
	defer mail.stop()
	s.a.say("mail arrives at all three nodes in turn")
	total := pairsOf(letters, demoLetters)
	if err := s.accepted(ctx, total*2/5); err != nil {
		return err
	}
	leader, _, err := s.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	s.a.say("SIGKILL to the leader, %s", leader.Name)
	if err := leader.Kill(); err != nil {
		return err
	}
	_, killedAt := s.book.Missing()
	if err := s.accepted(ctx, killedAt+total*3/10); err != nil {
		return err
	}
	next, _, err := s.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	s.a.say("mail went on arriving; %s leads; the dead node returns", next.Name)
	if err := leader.Start(); err != nil {
		return err
	}
	if err := mail.wait(); err != nil {
		return err
	}
	if err := s.fleet.Ready(ctx); err != nil {
		return err
	}
	s.a.say("all sent, all three nodes there; the primary comes up")
	if err := s.primaryUp(); err != nil {
		return err
	}
	if err := s.drained(ctx); err != nil {
		return err
	}
	s.a.say("drained")
	return nil
}

// pairsOf counts the recipients of the first letters of a generator.
func pairsOf(letters *letter.Generator, count int) int {
	pairs := 0
	for i := range count {
		pairs += len(letters.Letter(i).Recipients)
	}
	return pairs
}

// A mailing is a sender at work.
type mailing struct {
	s      *scene
	sender *sender.Sender
	cancel context.CancelFunc
	done   chan error
	waited bool
}

// mail begins to send to all nodes of the scene.
func (s *scene) mail(ctx context.Context, o sender.Options) (*mailing, error) {
	o.Targets, o.Record, o.Logger = s.fleet.Addresses(), s.book, s.o.logger
	if s.o.starttls {
		o.TLS = anyCertificate()
	}
	run, err := sender.New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &mailing{s: s, sender: run, cancel: cancel, done: make(chan error, 1)}
	go func() { m.done <- run.Run(ctx) }()
	return m, nil
}

// wait waits for the last letter.
func (m *mailing) wait() error {
	if m.waited {
		return nil
	}
	err := <-m.done
	m.waited = true
	m.s.stats.Add(m.sender.Stats())
	if given := m.sender.Stats().GivenUp; err == nil && given > 0 {
		err = fmt.Errorf("%d recipients were given up", given)
	}
	return err
}

// stop ends a mailing early.
func (m *mailing) stop() {
	m.cancel()
	_ = m.wait()
}
