package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// sinkFlags are the flags of "sink".
type sinkFlags struct {
	listen, ledger, control string
	faults                  []string
	seed                    uint64
	pace                    time.Duration
	sync, starttls          bool
}

func (a *app) sinkCommand() *cobra.Command {
	var f sinkFlags
	cmd := &cobra.Command{
		Use:   "sink --listen HOST:PORT --ledger FILE",
		Short: "Play a primary: take everything, record it, and misbehave when told to",
		Long: `Play a primary: take every message, record its digest, and discard it.

It misbehaves when told to. A fault is STAGE=ACTION[:RATE]. Stages: banner, ehlo,
starttls, mail, rcpt, data, body, dot (the message is not taken), after-dot (it is
taken, and the reply is lost), quit. Actions: refuse (5yz), defer (4yz), hang,
drop. The rate is a probability from 0 to 1.

Commands on standard input, or over the unix socket of --control, one per line:
  fault STAGE=ACTION[:RATE] ...   replace all faults by these
  clear                           behave
  pace DURATION                   wait before each reply to a final dot
  stats                           print what has been done so far`,
		Example: `  holdfast-bench sink --listen 127.0.0.1:2526 --ledger arrived.jsonl
  holdfast-bench sink --listen 127.0.0.1:2526 --ledger arrived.jsonl --fault dot=defer:0.1 --fault after-dot=drop:0.01
  echo 'fault banner=hang' | nc -U /tmp/sink.sock`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.listen == "" || f.ledger == "" {
				return usage(cmd, "--listen and --ledger are needed")
			}
			var plan []sink.Fault
			for _, text := range f.faults {
				fault, err := sink.ParseFault(text)
				if err != nil {
					return usage(cmd, "--fault: %v", err)
				}
				plan = append(plan, fault)
			}
			return a.sink(cmd.Context(), f, plan)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "", "the `HOST:PORT` to listen on")
	flags.StringVar(&f.ledger, "ledger", "", "append to this `file` what arrived")
	flags.BoolVar(&f.sync, "sync", false, "make each record of the ledger durable before the reply")
	flags.BoolVar(&f.starttls, "starttls", false, "offer STARTTLS, with a certificate signed by itself")
	flags.StringArrayVar(&f.faults, "fault", nil, "misbehave: `STAGE=ACTION[:RATE]`; may be repeated")
	flags.Uint64Var(&f.seed, "seed", 1, "the choices of faults come from it")
	flags.DurationVar(&f.pace, "pace", 0, "wait before each reply to a final dot")
	flags.StringVar(&f.control, "control", "", "take commands over this unix `socket`, too")
	return cmd
}

func (a *app) sink(ctx context.Context, f sinkFlags, plan []sink.Fault) (err error) {
	book, err := ledger.Create(f.ledger, ledger.Options{Sync: f.sync})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, book.Close()) }()
	faults := sink.NewFaults(f.seed)
	faults.Set(plan...)
	o := sink.Options{
		Hostname: "sink.test", Arrival: book.Arrival, Faults: faults, Pace: f.pace,
		Inspect: inspect, Logger: slog.New(slog.NewTextHandler(a.errOut, nil)),
	}
	if f.starttls {
		if o.TLS, err = serverTLS("sink.test"); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	s := sink.New(o)
	c := &control{server: s, faults: faults}
	// Standard input that is never closed keeps its reader for ever; it ends
	// with the process.
	go c.serve(a.in, a.out)
	if f.control != "" {
		os.Remove(f.control)
		socket, err := net.Listen("unix", f.control)
		if err != nil {
			l.Close()
			return err
		}
		defer socket.Close()
		go c.listen(socket)
	}
	a.say("listening on %s", l.Addr())
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	err = s.Serve(l)
	s.Close()
	fmt.Fprintln(a.out, statsLine(s.Stats()))
	if errors.Is(err, sink.ErrClosed) {
		return nil
	}
	return err
}

// inspect is what a primary checks of a message beyond its octets.
func inspect(_ string, _ []string, content []byte) error { return letter.Verify(content) }

// serverTLS is a certificate that nobody has reason to trust.
func serverTLS(name string) (*tls.Config, error) {
	certPEM, keyPEM, err := fleet.SelfSigned(name)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

func statsLine(s sink.Stats) string {
	return fmt.Sprintf("connections=%d messages=%d recipients=%d octets=%d unread=%d tls=%d violations=%d",
		s.Connections, s.Messages, s.Recipients, s.Octets, s.Unread, s.TLS, s.Violations)
}

// A control obeys lines.
type control struct {
	server *sink.Server
	faults *sink.Faults
}

func (c *control) listen(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			c.serve(conn, conn)
		}()
	}
}

func (c *control) serve(in io.Reader, out io.Writer) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		answer, err := c.obey(lines.Text())
		if err != nil {
			answer = "error: " + err.Error()
		}
		if answer != "" {
			fmt.Fprintln(out, answer)
		}
	}
}

func (c *control) obey(line string) (string, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return "", nil
	}
	switch verb, rest := words[0], words[1:]; {
	case verb == "fault" && len(rest) > 0:
		var plan []sink.Fault
		for _, text := range rest {
			f, err := sink.ParseFault(text)
			if err != nil {
				return "", err
			}
			plan = append(plan, f)
		}
		c.faults.Set(plan...)
		return "ok", nil
	case verb == "clear" && len(rest) == 0:
		c.faults.Set()
		return "ok", nil
	case verb == "pace" && len(rest) == 1:
		d, err := time.ParseDuration(rest[0])
		if err != nil || d < 0 {
			return "", fmt.Errorf("%q is no time to wait", rest[0])
		}
		c.server.SetPace(d)
		return "ok", nil
	case verb == "stats" && len(rest) == 0:
		return statsLine(c.server.Stats()), nil
	}
	return "", fmt.Errorf("%q: want fault, clear, pace or stats", line)
}
