package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/rival"
)

// jetStreamFlags are the flags of "versus-jetstream".
type jetStreamFlags struct {
	scene    sceneOptions
	nats     string
	rounds   int
	cells    []string
	duration time.Duration
	json     string
}

// A payloadCell is one row of the comparison: octets of a payload, and how many
// publishers there are.
type payloadCell struct {
	Size       int `json:"size"`
	Publishers int `json:"publishers"`
}

func (c payloadCell) String() string { return fmt.Sprintf("%dk:%d", c.Size>>10, c.Publishers) }

var payloadCells = []payloadCell{{64 << 10, 20}, {512 << 10, 20}, {4 << 10, 100}}

// payloadBytesMax bounds what one side of a cell is given. Three nodes write it
// three times, three servers of NATS six times.
const payloadBytesMax = 1 << 30

// generatorSocketName is below each node's directory.
const generatorSocketName = "generator.sock"

func (a *app) jetStreamCommand() *cobra.Command {
	f := jetStreamFlags{scene: sceneOptions{name: "jetstream"}}
	cmd := &cobra.Command{
		Use:   "versus-jetstream [--rounds N] [--cells SIZEk:PUBLISHERS,...]",
		Short: "Compare three nodes with a JetStream of three NATS servers, both on this host",
		Long: `Compare how fast three nodes and a NATS JetStream of three servers put payloads on
stable storage, both on this host, in rounds: JetStream, the nodes, JetStream, ...
Only the ratios of one round mean anything, since the host is shared and its speed
changes; the table has their median and range.

Both run as three processes, and both acknowledge a payload when a majority has
fsynced it. The stream has three replicas on files and the servers have
"sync_interval: always"; each publisher has a connection of its own to the server
that leads the stream, and waits for each acknowledgement. The nodes' payloads come
from a generator inside each node, spread evenly, and enter where the SMTP server
hands over a message; they are not SMTP's work, and so not a measure of a mail
server. Each cell begins with nothing stored on both sides. "make bench-jetstream"
builds what this needs. The last line is

  jetstream kb64_20=X.XX kb512_20=X.XX kb4_100=X.XX

with the ratios of payloads per second, 0.00 for what was not measured.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cells := payloadCells
			if len(f.cells) > 0 {
				var err error
				if cells, err = parsePayloadCells(f.cells); err != nil {
					return usage(cmd, "--cells: %v", err)
				}
			}
			if f.rounds < 1 || f.duration < time.Second {
				return usage(cmd, "--rounds is 1 at the least, --duration a second")
			}
			return a.versusJetStream(cmd.Context(), f, cells)
		},
	}
	sceneFlags(cmd, &f.scene)
	flags := cmd.Flags()
	flags.StringVar(&f.nats, "nats", "bin/jetstream", "the `directory` of nats-server and of the publisher, jetstream")
	flags.IntVar(&f.rounds, "rounds", 3, "how many `rounds`")
	flags.StringSliceVar(&f.cells, "cells", nil, "only these: `SIZEk:PUBLISHERS`, several separated by commas")
	flags.DurationVar(&f.duration, "duration", 10*time.Second, "how long one side of a cell takes")
	flags.StringVar(&f.json, "json", "", "write every result to this `file`")
	return cmd
}

func parsePayloadCells(texts []string) ([]payloadCell, error) {
	var cells []payloadCell
	for _, text := range texts {
		size, publishers, _ := strings.Cut(text, ":")
		kib, sizeErr := strconv.Atoi(strings.TrimSuffix(size, "k"))
		n, publishersErr := strconv.Atoi(publishers)
		// NATS takes payloads of up to 1 MiB.
		if !strings.HasSuffix(size, "k") || sizeErr != nil || publishersErr != nil || kib < 1 || kib > 1024 || n < 1 {
			return nil, fmt.Errorf("%q: want for example 64k:20, up to 1024k", text)
		}
		cells = append(cells, payloadCell{kib << 10, n})
	}
	return cells, nil
}

// A payloadMatch is one cell of one round.
type payloadMatch struct {
	Round     int         `json:"round"`
	Cell      payloadCell `json:"cell"`
	JetStream payloadSide `json:"jetstream"`
	Holdfast  payloadSide `json:"holdfast"`
}

// A payloadSide is what one side did in a cell.
type payloadSide struct {
	PerSecond    float64       `json:"per_second"`
	P50          time.Duration `json:"p50_ns"`
	P99          time.Duration `json:"p99_ns"`
	Accepted     int           `json:"accepted"`
	Failed       int           `json:"failed"`
	FirstFailure string        `json:"first_failure,omitempty"`
}

func (s payloadSide) String() string {
	text := fmt.Sprintf("%.1f/s, p50=%v p99=%v", s.PerSecond, s.P50, s.P99)
	if s.Failed > 0 {
		text += fmt.Sprintf("; %d FAILED (%s)", s.Failed, s.FirstFailure)
	}
	return text
}

func (m payloadMatch) ratio() float64 { return m.Holdfast.PerSecond / m.JetStream.PerSecond }

// joinPublished adds up what was published side by side.
func joinPublished(parts []rival.Published) payloadSide {
	var s payloadSide
	var latencies []uint32
	var elapsed time.Duration
	for _, p := range parts {
		s.Accepted += p.Accepted
		s.Failed += p.Failed
		if s.FirstFailure == "" {
			s.FirstFailure = p.FirstFailure
		}
		latencies = append(latencies, p.LatenciesUS...)
		elapsed = max(elapsed, p.Elapsed)
	}
	if len(latencies) == 0 {
		return s
	}
	slices.Sort(latencies)
	at := func(percent int) time.Duration {
		return time.Duration(latencies[len(latencies)*percent/100]) * time.Microsecond
	}
	s.PerSecond, s.P50, s.P99 = float64(s.Accepted)/elapsed.Seconds(), at(50), at(99)
	return s
}

// spread divides publishers among nodes as evenly as they go.
func spread(publishers, nodes int) []int {
	shares := make([]int, nodes)
	for i := range publishers {
		shares[i%nodes]++
	}
	return shares
}

func (a *app) versusJetStream(ctx context.Context, f jetStreamFlags, cells []payloadCell) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-rival-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := enoughSpace(dir, diskFreeMin+6*payloadBytesMax); err != nil {
		return err
	}
	matches := make([]payloadMatch, 0, f.rounds*len(cells))
	for round := 1; round <= f.rounds; round++ {
		for _, c := range cells {
			m := payloadMatch{Round: round, Cell: c}
			l := rival.Load{Size: c.Size, Publishers: c.Publishers, Duration: f.duration, OctetsMax: payloadBytesMax}
			if m.JetStream, err = a.againstJetStream(ctx, f.nats, filepath.Join(dir, "nats"), l); err != nil {
				return fmt.Errorf("round %d, %v, JetStream: %w", round, c, err)
			}
			if m.Holdfast, err = a.againstGenerators(ctx, f.scene, l); err != nil {
				return fmt.Errorf("round %d, %v, Holdfast: %w", round, c, err)
			}
			a.say("round %d of %d, %v: JetStream %v", round, f.rounds, c, m.JetStream)
			a.say("round %d of %d, %v: Holdfast %v: %.2f times", round, f.rounds, c, m.Holdfast, m.ratio())
			matches = append(matches, m)
			if err := writeResults(f.json, matches); err != nil {
				return err
			}
		}
	}
	a.printPayloadMatches(cells, matches)
	for _, m := range matches {
		if m.JetStream.Failed+m.Holdfast.Failed > 0 {
			err = errors.Join(err, fmt.Errorf("round %d, %v: %d payloads failed at JetStream, %d at Holdfast", m.Round, m.Cell, m.JetStream.Failed, m.Holdfast.Failed))
		}
	}
	return err
}

// againstJetStream gives the load to three new servers.
func (a *app) againstJetStream(ctx context.Context, bin, dir string, l rival.Load) (_ payloadSide, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return payloadSide{}, fmt.Errorf("make directory: %w", err)
	}
	o := rival.JetStreamOptions{Server: filepath.Join(bin, "nats-server"), Publisher: filepath.Join(bin, "jetstream"), Dir: dir}
	for _, addresses := range []*[]string{&o.Clients, &o.Routes} {
		for range 3 {
			address, err := fleet.FreeAddress()
			if err != nil {
				return payloadSide{}, err
			}
			*addresses = append(*addresses, address)
		}
	}
	j, err := rival.StartJetStream(o)
	if err != nil {
		return payloadSide{}, err
	}
	defer func() { err = errors.Join(err, j.Close(), os.RemoveAll(dir)) }()
	p, err := j.Publish(ctx, l)
	if err != nil {
		return payloadSide{}, err
	}
	return joinPublished([]rival.Published{p}), nil
}

// againstGenerators has the generators of three new nodes share the load.
func (a *app) againstGenerators(ctx context.Context, so sceneOptions, l rival.Load) (payloadSide, error) {
	so.arguments = []string{"env", "HOLDFAST_GENERATOR=" + generatorSocketName}
	var side payloadSide
	err := a.withScene(ctx, so, func(s *scene) (err error) {
		if err := s.settle(ctx); err != nil {
			return err
		}
		side, err = s.generate(ctx, l)
		return err
	})
	return side, err
}

// generate has each node's generator carry out its share of the load.
func (s *scene) generate(ctx context.Context, l rival.Load) (payloadSide, error) {
	nodes := s.fleet.Nodes
	parts, errs := make([]rival.Published, len(nodes)), make([]error, len(nodes))
	var running sync.WaitGroup
	for i, publishers := range spread(l.Publishers, len(nodes)) {
		share := l
		share.Publishers, share.OctetsMax = publishers, l.OctetsMax/int64(len(nodes))
		running.Go(func() {
			parts[i], errs[i] = rival.Generate(ctx, filepath.Join(nodes[i].Dir, generatorSocketName), "user@"+domains()[0], share)
		})
	}
	running.Wait()
	return joinPublished(parts), errors.Join(errs...)
}

func (a *app) printPayloadMatches(cells []payloadCell, matches []payloadMatch) {
	fmt.Fprintf(a.out, "%-9s %12s %12s  %s\n", "cell", "jetstream/s", "holdfast/s", "ratio (range); p99 of the acknowledgement")
	medians := map[payloadCell]float64{}
	for _, c := range cells {
		var theirs, ours, ratios, theirP99, ourP99 []float64
		for _, m := range matches {
			if m.Cell != c {
				continue
			}
			theirs, ours = append(theirs, m.JetStream.PerSecond), append(ours, m.Holdfast.PerSecond)
			ratios = append(ratios, m.ratio())
			theirP99 = append(theirP99, m.JetStream.P99.Seconds()*1e3)
			ourP99 = append(ourP99, m.Holdfast.P99.Seconds()*1e3)
		}
		medians[c] = median(ratios)
		fmt.Fprintf(a.out, "%-9v %12.1f %12.1f  %.2f (%.2f-%.2f); %.1f ms against %.1f ms\n",
			c, median(theirs), median(ours), median(ratios), slices.Min(ratios), slices.Max(ratios), median(ourP99), median(theirP99))
	}
	fmt.Fprintf(a.out, "jetstream kb64_20=%.2f kb512_20=%.2f kb4_100=%.2f\n",
		medians[payloadCells[0]], medians[payloadCells[1]], medians[payloadCells[2]])
}
