//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// primaries are the mail servers that mail is delivered to. Each has a domain of its
// name, and an address of its own.
var primaries = []struct {
	make    mailserver.Make
	address string
}{
	// Not addressPrimary: a process of a Postfix that was stopped may listen for a
	// while yet, and takes nothing.
	{mailserver.Postfix, addressSigned},
	{mailserver.Exim, "127.0.0.21"},
	{mailserver.OpenSMTPD, "127.0.0.22"},
}

// unpacked is where .ci/mailservers unpacks what cannot be installed beside Postfix.
func unpacked() string {
	if dir := os.Getenv("HOLDFAST_MAILSERVERS"); dir != "" {
		return dir
	}
	return "../../bin/mailservers"
}

// Signed mail that comes in while its primary is down is kept by the primary as it
// was signed, whoever made the primary: every octet, and a signature that verifies.
func TestPrimariesKeepWhatWasSigned(t *testing.T) {
	dir := newDirectory(t)
	serveDNS(t)
	nodes := startNodes(t, dir, false)
	within := func(limit time.Duration, t *testing.T, what string, condition func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := nodes.Until(ctx, what, condition); err != nil {
			t.Error(err)
		}
	}
	ready, cancel := context.WithTimeout(t.Context(), readyTime)
	defer cancel()
	if err := nodes.Ready(ready); err != nil {
		t.Fatal(err)
	}
	holdfast := func(t *testing.T, args ...string) {
		t.Helper()
		if _, err := nodes.Holdfast(t.Context(), nodes.Nodes[0], args...); err != nil {
			t.Fatal(err)
		}
	}

	key, book := newDKIMKey(t), ledger.New()
	var all []*letter.Letter
	for _, m := range primaries {
		domain := string(m.make) + ".test"
		holdfast(t, "domain", "put", domain, "--to", m.address+":25")
		all = append(all, signedLetters(t, key, domain)...)
	}
	for _, n := range nodes.Nodes {
		within(readyTime, t, n.Name+" to know the domains", func(ctx context.Context) error {
			s, err := nodes.Status(ctx, n)
			if err == nil && len(s.Domains) != len(primaries) {
				err = fmt.Errorf("it knows %d", len(s.Domains))
			}
			return err
		})
	}
	s, err := sender.New(sender.Options{
		Targets: nodes.Addresses(), Letter: func(i int) *letter.Letter { return all[i] },
		Count: len(all), Sessions: 3, PerConnection: 4, Record: book, GiveUp: queueTime,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Letters != len(all) {
		t.Fatalf("%d of %d letters were taken: %+v", got.Letters, len(all), got)
	}

	for _, m := range primaries {
		name := string(m.make)
		t.Run(name, func(t *testing.T) {
			home := filepath.Join(dir, name, "mailbox")
			if err := os.MkdirAll(home, 0o755); err != nil {
				t.Fatal(err)
			}
			box := &maildir{Maildir: mailserver.Maildir{Path: filepath.Join(home, "Maildir")}, book: book}
			place := mailserver.Place{Dir: dir, Name: name, Address: m.address, Port: 25, Unpacked: unpacked(), Resolver: addressDNS}
			server, err := mailserver.NewPrimary(m.make, place, []string{name + ".test"}, box.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := server.Stop(); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					t.Logf("the log of %s:\n%s", name, mailserver.Tail(server))
				}
				if err := mailserver.Close(server); err != nil {
					t.Error(err)
				}
			}()
			within(readyTime, t, name+" to greet", func(ctx context.Context) error { return fleet.Greets(ctx, m.address+":25") })
			holdfast(t, "domain", "flush", name+".test")
			within(drainTime, t, name+" to have all of its mail", func(context.Context) error {
				box.read(t)
				if len(box.kept) < len(contents) {
					return fmt.Errorf("%d of %d messages", len(box.kept), len(contents))
				}
				return nil
			})
			for _, k := range box.kept {
				data, err := os.ReadFile(k.File)
				if err != nil {
					t.Fatal(err)
				}
				// A maildir has lines as files have them.
				message := bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
				if err := key.verify(message); err != nil {
					t.Errorf("%v: %.1000q", err, message)
				}
			}
		})
	}
	within(drainTime, t, "the queue to be empty", func(ctx context.Context) error {
		s, err := nodes.Status(ctx, nodes.Nodes[0])
		if err == nil && (!s.Queue.Idle() || s.Queue.Held > 0) {
			err = fmt.Errorf("%v", s.Queue)
		}
		return err
	})
	report := book.Check()
	t.Log(report)
	if !report.OK() || report.Accepted != len(all) || report.Delivered != len(all) || report.Duplicates > 0 {
		t.Errorf("%+v\n%s", report, strings.Join(report.Cases, "\n"))
	}
}
