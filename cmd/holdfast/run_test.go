package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cluster/transport"
)

// brokenPipe is a standard output whose reader has gone.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestBrokenPipeIsSilent(t *testing.T) {
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"gossip-key"}, strings.NewReader(""), brokenPipe{}, &stderr); code != exitFailure || stderr.Len() > 0 {
		t.Errorf("exit status %d, %q", code, &stderr)
	}
}

// fullDisk is a standard output that cannot be written to.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAFailedWriteIsAFailure(t *testing.T) {
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"gossip-key"}, strings.NewReader(""), fullDisk{}, &stderr); code != exitFailure || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("exit status %d, %q", code, &stderr)
	}
}

// TestInterrupted stops a command while the daemon does not answer, as Ctrl-C
// does.
func TestInterrupted(t *testing.T) {
	d := newFakeDaemon()
	d.setMode("hangs")
	socket, stop, err := d.serve()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, command := range [][]string{{"status"}, {"domain", "flush", "example.test"}, {"queue", "list"}} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-d.hanging
			cancel()
		}()
		var stdout, stderr bytes.Buffer
		code := run(ctx, append([]string{"--socket", socket}, command...), strings.NewReader(""), &stdout, &stderr)
		if code != exitInterrupted || stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), "holdfast: interrupted") {
			t.Errorf("%v: exit status %d, %q, %q", command, code, &stdout, &stderr)
		}
		cancel()
	}
}

// TestEveryCommandHasHelp holds that nobody needs to guess.
func TestEveryCommandHasHelp(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || !strings.Contains(c.Example, "holdfast") {
			t.Errorf("%s lacks Short, Long or Example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(new(app).command())
}

func TestConfirmation(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, " yes \n": true, "\n": false, "n\n": false, "yup\n": false, "": false, "y": true} {
		line, err := readLine(t.Context(), strings.NewReader(answer))
		if err != nil {
			t.Fatal(err)
		}
		if got := affirmative(line); got != want {
			t.Errorf("%q is taken for %v", answer, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := readLine(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestTargets(t *testing.T) {
	for in, want := range map[string]string{
		"mail.example.test":       "mail.example.test:25",
		"Mail.Example.Test:2525":  "mail.example.test:2525",
		"192.0.2.1":               "192.0.2.1:25",
		"192.0.2.1:26":            "192.0.2.1:26",
		"[2001:db8::10]":          "2001:db8::10:25",
		"[2001:db8::10]:26":       "2001:db8::10:26",
		"2001:db8::10":            "!brackets",
		"[192.0.2.1]:25":          "!brackets hold",
		"[mail.example.test]":     "!brackets hold",
		"[2001:db8::10":           "!is no HOST:PORT",
		"mail.example.test:":      "!the port",
		"mail.example.test:0":     "!the port",
		"mail.example.test:65536": "!the port",
		"mail.example.test:-1":    "!the port",
		"mail.example.test:smtp":  "!the port",
		"192.0.2.300":             "!neither",
		"":                        "!neither",
		":25":                     "!neither",
		"a b":                     "!neither",
		"mail.example.test\r\n":   "!neither",
		"*.example.test":          "!neither",
	} {
		got, err := parseTarget(in)
		text, bad := strings.CutPrefix(want, "!")
		switch {
		case bad && (err == nil || !strings.Contains(err.Error(), text)):
			t.Errorf("%q: %v, %v; want an error with %q", in, got, err, text)
		case !bad && (err != nil || got.GetHost()+":"+count(got.GetPort()) != want):
			t.Errorf("%q: %v, %v; want %s", in, got, err, want)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain, grüße, 日本, emoji 🙂": "plain, grüße, 日本, emoji 🙂",
		"\x1b[2J\x07\x7f\r\n\t":     `\x1b[2J\x07\x7f\x0d\x0a\x09`,
		"\u009b31m":                 `\u009b31m`,
		"\u202eevil\u2066":          `\u202eevil\u2066`,
		"\u2028\ufeff":              `\u2028\ufeff`,
		"\U000e0041":                `\U000e0041`,
		"a\xffb\xc3":                `a\xffb\xc3`,
	} {
		if got := escape(in); got != want {
			t.Errorf("escape(%q) = %s, want %s", in, got, want)
		}
	}
}

// FuzzEscape holds that nothing reaches the terminal but printable characters,
// and that JSON still says the same.
func FuzzEscape(f *testing.F) {
	f.Add("\x1b]0;x\x07")
	f.Add("\u202e\U000e0041\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if got := escape(s); !printable(got) {
			t.Errorf("escape(%q) = %q", s, got)
		}
		var b bytes.Buffer
		if err := writeJSON(&b, s); err != nil {
			t.Fatal(err)
		}
		if !printable(strings.TrimSuffix(b.String(), "\n")) {
			t.Errorf("JSON of %q is %q", s, &b)
		}
		var back string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || utf8.ValidString(s) && back != s {
			t.Errorf("JSON of %q reads as %q, %v", s, back, err)
		}
	})
}

func printable(s string) bool { return escape(s) == s }

// TestNodesOfOneCAAreAccepted reads what "ca" wrote with the package that nodes
// read it with.
func TestNodesOfOneCAAreAccepted(t *testing.T) {
	dir := t.TempDir()
	do := func(args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr); code != exitDone {
			t.Fatalf("%v: exit status %d: %s", args, code, &stderr)
		}
	}
	ca, node := filepath.Join(dir, "ca"), filepath.Join(dir, "mx1")
	do("ca", "create", "--cluster", "example", "--out", ca)
	do("ca", "issue", "--ca", ca, "--node", "mx1", "--address", "192.0.2.1", "--address", "mx1.example.net", "--out", node)
	id, err := transport.LoadIdentity(filepath.Join(node, "ca.crt"), filepath.Join(node, "node.crt"), filepath.Join(node, "node.key"), "example")
	if err != nil {
		t.Fatal(err)
	}
	if id.Name() != "mx1" || id.Cluster() != "example" {
		t.Errorf("identity %s of %s", id.Name(), id.Cluster())
	}
	for name, want := range map[string]os.FileMode{"ca/ca.key": 0o600, "ca/gossip.key": 0o600, "mx1/node.key": 0o600, "mx1/gossip.key": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}
