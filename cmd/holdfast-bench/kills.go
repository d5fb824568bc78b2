package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

// killsFlags are the flags of "kills".
type killsFlags struct {
	scene           sceneOptions
	messages, kills int
	seed            uint64
	size            string
	limit           time.Duration
}

func (a *app) killsCommand() *cobra.Command {
	f := killsFlags{scene: sceneOptions{
		name: "kills",
		// A lease of a killed node ends after this time, and what it had begun
		// waits as long again. The defaults would make most of the run a wait.
		settings: map[string]string{"lease_duration": `"5s"`, "doubt_wait": `"5s"`},
	}}
	cmd := &cobra.Command{
		Use:   "kills [--messages N] [--kills K] [--seed S]",
		Short: "Kill nodes again and again while mail is accepted and delivered",
		Long: `Send messages to three nodes and kill one after the other with SIGKILL, half of
the kills while mail is accepted, half while it drains to the primary. Half of
them hit the leader. Each node is back, and all are ready, before the next kill.
Moments and victims come from the seed; a moment is a number of messages, not a
time, so that a slow machine does not change the story.

The primary is slow while kills are to come, so that each meets mail in delivery:
a node that is killed between its final dot and the record of its outcome leaves
a copy too many. That is counted, and allowed; a loss is not.`,
		Example: `  holdfast-bench kills --bin bin --messages 2000 --kills 20 --seed 7`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.kills < 2 || f.messages < 10*f.kills {
				return usage(cmd, "--kills is 2 at the least, --messages ten times as many at the least")
			}
			if err := oneOf(cmd, "size", f.size, letter.AllSizes()...); err != nil {
				return err
			}
			return a.kills(cmd.Context(), f)
		},
	}
	sceneFlags(cmd, &f.scene)
	flags := cmd.Flags()
	flags.IntVar(&f.messages, "messages", 2000, "how many messages")
	flags.IntVar(&f.kills, "kills", 20, "how many kills")
	flags.Uint64Var(&f.seed, "seed", 1, "messages, moments and victims come from it")
	flags.StringVar(&f.size, "size", string(letter.ShapesOfMail), "4k, 64k, mix or shapes")
	flags.DurationVar(&f.limit, "limit", 8*time.Minute, "end a run that does not get on after this time")
	return cmd
}

func (a *app) kills(ctx context.Context, f killsFlags) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.limit, fmt.Errorf("the run took more than %v", f.limit))
	defer cancel()
	a.say("seed %d", f.seed)
	s, err := a.openScene(ctx, f.scene)
	if err != nil {
		return err
	}
	defer func() { err = s.ending(err) }()
	k := &killer{s: s, f: f, rand: rand.New(rand.NewPCG(f.seed, 0x6b696c6c)), plan: planKills(f.kills, f.seed)}
	if err := k.run(ctx); err != nil {
		return err
	}
	if err := s.fleet.Stop(); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "seed=%d messages=%d kills=%d of-leader=%d\n", f.seed, s.stats.Letters, k.killed, k.leaders)
	return s.judge()
}

// A kill is one planned kill: of the leader or of another node, when a part of
// the mail between it and the kill before it has passed, and for how long the
// node stays dead.
type kill struct {
	leader bool
	at     float64 // 0 to 1
	down   time.Duration
}

// planKills draws the kills of both phases, accept first. In each phase half of
// them, rounded up, hit the leader.
func planKills(count int, seed uint64) (phases [2][]kill) {
	r := rand.New(rand.NewPCG(seed, 0x706c616e))
	for p := range phases {
		n := count / 2
		if p == 0 {
			n = count - count/2
		}
		for i := range n {
			phases[p] = append(phases[p], kill{
				leader: i < (n+1)/2,
				at:     0.2 + 0.6*r.Float64(),
				down:   300*time.Millisecond + time.Duration(r.IntN(1200))*time.Millisecond,
			})
		}
		r.Shuffle(n, func(i, j int) { phases[p][i], phases[p][j] = phases[p][j], phases[p][i] })
	}
	return phases
}

// A killer drives the run.
type killer struct {
	s       *scene
	f       killsFlags
	rand    *rand.Rand
	plan    [2][]kill
	quota   atomic.Int64 // letters that may be begun
	killed  int
	leaders int
}

func (k *killer) run(ctx context.Context) error {
	stop := k.s.a.watch(ctx, func() string { return k.s.progress(ctx) })
	defer stop()
	if err := k.accept(ctx); err != nil {
		return fmt.Errorf("while mail was accepted: %w", err)
	}
	if err := k.drain(ctx); err != nil {
		return fmt.Errorf("while mail drained: %w", err)
	}
	return nil
}

// share is how much of total has passed before the i'th of n parts, plus the
// fraction of that part.
func share(total, i, n int, fraction float64) int {
	return int(float64(total) * (float64(i) + fraction) / float64(n))
}

// accept sends all letters and kills meanwhile. Letters are released part by
// part, so that however fast the cluster is, each kill meets mail in the middle
// of its part.
func (k *killer) accept(ctx context.Context) error {
	letters := letter.New(letter.Options{Seed: k.f.seed, Domains: domains(), Sizes: letter.Sizes(k.f.size), BigAt: k.f.messages / 3})
	kills := k.plan[0]
	parts := len(kills)
	mail, err := k.s.mail(ctx, sender.Options{
		Letter: letters.Letter, Count: k.f.messages, Admit: k.admit, Sessions: 8, PerConnection: 10,
		Pause: 20 * time.Millisecond, Seed: k.f.seed,
	})
	if err != nil {
		return err
	}
	defer mail.stop()
	for i, next := range kills {
		k.quota.Store(int64(share(k.f.messages, i+1, parts, 0)))
		moment := share(k.f.messages, i, parts, next.at)
		err := k.s.fleet.Until(ctx, fmt.Sprintf("message %d", moment), func(context.Context) error {
			if n := mail.sender.Stats().Letters; n < moment {
				return fmt.Errorf("%d accepted", n)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := k.kill(ctx, next); err != nil {
			return err
		}
	}
	return mail.wait()
}

// admit holds the sender's sessions back at the quota.
func (k *killer) admit(ctx context.Context, n int) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for int64(n) >= k.quota.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

const (
	// paceSlow is the primary's pace once the part before the next kill has
	// passed, paceQuick its pace before that.
	paceSlow  = 2 * time.Second
	paceQuick = 50 * time.Millisecond
)

// drain brings the primary up and kills while it takes the mail.
func (k *killer) drain(ctx context.Context) error {
	if err := k.s.primaryUp(); err != nil {
		return err
	}
	_, total := k.s.book.Missing()
	kills := k.plan[1]
	parts := len(kills) + 1 // something is left after the last kill
	for i, next := range kills {
		k.s.server.SetPace(paceQuick)
		if err := k.arrived(ctx, share(total, i, parts, next.at)); err != nil {
			return err
		}
		// From here to the node's return the primary is slow, or there would
		// be nothing left to drain.
		k.s.server.SetPace(paceSlow)
		if err := k.kill(ctx, next); err != nil {
			return err
		}
	}
	k.s.server.SetPace(0)
	return k.s.drained(ctx)
}

func (k *killer) arrived(ctx context.Context, pairs int) error {
	return k.s.fleet.Until(ctx, fmt.Sprintf("%d arrivals", pairs), func(context.Context) error {
		if missing, accepted := k.s.book.Missing(); accepted-missing < pairs {
			return fmt.Errorf("%d arrived", accepted-missing)
		}
		return nil
	})
}

// kill kills one node, brings it back, and waits until all nodes are ready.
func (k *killer) kill(ctx context.Context, next kill) error {
	leader, _, err := k.s.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	victim, what := leader, "the leader"
	if !next.leader {
		victim, what = k.follower(leader), "a follower"
	}
	k.killed++
	if next.leader {
		k.leaders++
	}
	k.s.a.say("kill %d of %d: %s, %s, for %v", k.killed, k.f.kills, victim.Name, what, next.down.Round(10*time.Millisecond))
	if err := victim.Kill(); err != nil {
		return err
	}
	timer := time.NewTimer(next.down)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := victim.Start(); err != nil {
		return err
	}
	ready, cancel := context.WithTimeoutCause(ctx, readyTime, errors.New("not ready in time"))
	defer cancel()
	return k.s.fleet.Ready(ready)
}

func (k *killer) follower(leader *fleet.Node) *fleet.Node {
	var others []*fleet.Node
	for _, n := range k.s.fleet.Nodes {
		if n != leader {
			others = append(others, n)
		}
	}
	return others[k.rand.IntN(len(others))]
}
