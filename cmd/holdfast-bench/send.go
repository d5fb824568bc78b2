package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

// sendFlags are the flags of "send".
type sendFlags struct {
	to, domains      []string
	sessions, count  int
	perConnection    int
	size, run        string
	seed             uint64
	ledger, output   string
	duration, giveUp time.Duration
	pause            time.Duration
	sync, starttls   bool
}

func (a *app) sendCommand() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use:   "send --to HOST:PORT[,HOST:PORT...]",
		Short: "Send messages made from a seed, and record what was acknowledged",
		Long: `Send messages made from a seed to one or several equal servers, as a sending mail
server does: after a 4yz, no reply, a refused connection or a 421 banner the same
message goes to the next server, with back-off. Intent is recorded before each
final dot, the outcome after it.

Sizes: 4k and 64k are plain messages of that size. mix is 50 % of 4 to 16 KiB,
35 % to 100 KiB, 13 % to 1 MiB and 2 % to 10 MiB. shapes are the shapes of real
mail: multipart, 8-bit, UTF-8 header, DKIM, long lines, lines of dots, no content
at all, several recipients, two domains, once 20 MiB.

The figures count accepted messages and the time from the final dot to its 250.`,
		Example: `  holdfast-bench send --to 127.0.0.1:2525,127.0.0.2:2525 --sessions 20 --count 5000 --size mix --ledger sent.jsonl
  holdfast-bench send --to 127.0.0.1:2525 --duration 60s --count 0 --size 4k -o json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.send(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.to, "to", nil, "the servers: `HOST:PORT`, several separated by commas")
	flags.StringSliceVar(&f.domains, "domains", []string{"example.test", "example.org"}, "relay `domains` to send to, in turn")
	flags.IntVar(&f.sessions, "sessions", 10, "connections at a time")
	flags.IntVar(&f.count, "count", 1000, "how many messages; 0: as many as --duration allows")
	flags.IntVar(&f.perConnection, "per-connection", 20, "messages over one connection, before it goes to the next server")
	flags.StringVar(&f.size, "size", string(letter.Mix), "4k, 64k, mix or shapes")
	flags.StringVar(&f.run, "run", "", "a `word` in each address, to tell runs apart that share a ledger")
	flags.Uint64Var(&f.seed, "seed", 1, "the messages and the jitter come from it")
	flags.StringVar(&f.ledger, "ledger", "", "append to this `file` what was acknowledged")
	flags.BoolVar(&f.sync, "sync", false, "make each record of the ledger durable at once")
	flags.BoolVar(&f.starttls, "starttls", false, "use STARTTLS where it is offered, without verifying anything")
	flags.DurationVar(&f.duration, "duration", 0, "end after this time")
	flags.DurationVar(&f.pause, "pause", 0, "wait between two messages of a session")
	flags.DurationVar(&f.giveUp, "give-up", time.Hour, "give a message up after this time")
	outputFlag(cmd, &f.output)
	return cmd
}

func (f *sendFlags) check(cmd *cobra.Command) error {
	if len(f.to) == 0 {
		return usage(cmd, "--to is missing: give the servers")
	}
	for _, to := range f.to {
		if _, _, err := net.SplitHostPort(to); err != nil {
			return usage(cmd, "--to %q: want HOST:PORT", to)
		}
	}
	switch {
	case len(f.domains) == 0:
		return usage(cmd, "--domains is empty")
	case f.sessions < 1 || f.perConnection < 1 || f.count < 0:
		return usage(cmd, "--sessions and --per-connection are 1 at the least, --count is not negative")
	case f.count == 0 && f.duration <= 0:
		return usage(cmd, "--count 0 needs a --duration")
	}
	for _, b := range f.run {
		if !('a' <= b && b <= 'z' || '0' <= b && b <= '9') {
			return usage(cmd, "--run %q: use a-z and 0-9", f.run)
		}
	}
	if err := oneOf(cmd, "size", f.size, letter.AllSizes()...); err != nil {
		return err
	}
	return oneOf(cmd, "output", f.output, "text", "json")
}

func (a *app) send(ctx context.Context, f sendFlags) (err error) {
	book := ledger.New()
	if f.ledger != "" {
		if book, err = ledger.Create(f.ledger, ledger.Options{Sync: f.sync}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, book.Close()) }()
	}
	letters := letter.New(letter.Options{
		Seed: f.seed, Run: f.run, Domains: f.domains, Sizes: letter.Sizes(f.size), BigAt: f.count / 3,
	})
	o := sender.Options{
		Targets: f.to, Letter: letters.Letter, Count: f.count, Sessions: f.sessions, PerConnection: f.perConnection,
		Pause: f.pause, GiveUp: f.giveUp, Record: book, Seed: f.seed,
	}
	if f.starttls {
		o.TLS = anyCertificate()
	}
	s, err := sender.New(o)
	if err != nil {
		return err
	}
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	stop := a.watch(ctx, func() string { return progressOf(s.Stats()) })
	err = s.Run(ctx)
	stop()
	if err != nil {
		return err
	}
	stats := s.Stats()
	if err := printSend(a.out, f.output, stats); err != nil {
		return err
	}
	if stats.Refused > 0 || (stats.GivenUp > 0 && ctx.Err() == nil) {
		return fmt.Errorf("%d recipients refused, %d given up", stats.Refused, stats.GivenUp)
	}
	return nil
}

// anyCertificate is opportunistic TLS (RFC 7435): better than none.
func anyCertificate() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
}

// watch prints a line of progress every second, until the returned function is
// called.
func (a *app) watch(ctx context.Context, line func() string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.say("%s", line())
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func progressOf(s sender.Stats) string {
	return fmt.Sprintf("%d messages, %d recipients accepted; %d deferred, %d without a reply, %d unreachable",
		s.Letters, s.Pairs, s.Deferred, s.NoReply, s.Unreachable)
}

// sendJSON is the JSON of "send". Field names are an interface.
type sendJSON struct {
	Messages    int            `json:"messages"`
	Recipients  int            `json:"recipients"`
	Octets      int64          `json:"octets"`
	Accepted    map[string]int `json:"accepted_by_server"`
	Deferred    int            `json:"deferred"`
	Refused     int            `json:"refused"`
	NoReply     int            `json:"no_reply"`
	Unreachable int            `json:"unreachable"`
	GivenUp     int            `json:"given_up"`
	Seconds     float64        `json:"seconds"`
	PerSecond   float64        `json:"messages_per_second"`
	DotP50      float64        `json:"dot_p50_ms"`
	DotP99      float64        `json:"dot_p99_ms"`
	DotMax      float64        `json:"dot_max_ms"`
}

func printSend(w io.Writer, output string, s sender.Stats) error {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	if output == "json" {
		return json.NewEncoder(w).Encode(sendJSON{
			Messages: s.Letters, Recipients: s.Pairs, Octets: s.Octets, Accepted: s.Accepted, Deferred: s.Deferred, Refused: s.Refused,
			NoReply: s.NoReply, Unreachable: s.Unreachable, GivenUp: s.GivenUp, Seconds: s.Elapsed.Seconds(), PerSecond: s.PerSecond(),
			DotP50: ms(s.Dot.Quantile(0.5)), DotP99: ms(s.Dot.Quantile(0.99)), DotMax: ms(s.Dot.Max()),
		})
	}
	_, err := fmt.Fprintf(w, "%s\n%d refused, %d given up\n%.1f messages/s, %.2f MB/s; reply to the final dot: %v\n",
		progressOf(s), s.Refused, s.GivenUp, s.PerSecond(), float64(s.Octets)/1e6/max(s.Elapsed.Seconds(), 1e-9), s.Dot)
	return err
}
