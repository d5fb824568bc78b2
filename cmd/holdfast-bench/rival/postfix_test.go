package rival

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func instance(o Options) *Postfix {
	o.Dir, o.Address, o.Domain, o.NextHop = "/tmp/r", "127.0.0.1:2525", "example.test", "127.0.0.1:2526"
	return &Postfix{o: o, config: "/tmp/r/etc", queue: "/tmp/r/queue"}
}

// settings reads a main.cf as Postfix does, as far as ours goes.
func settings(t *testing.T, text string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " = ")
		if _, twice := found[key]; !ok || twice || strings.TrimSpace(key) != key || key == "" {
			t.Errorf("main.cf: the line %q", line)
		}
		found[key] = value
	}
	return found
}

// TestMainFile: all that is not Debian's default is what it takes to have a place
// of its own, to relay the domain, and to take large messages.
func TestMainFile(t *testing.T) {
	files, err := instance(Options{}).files()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"compatibility_level": "3.6",
		"queue_directory":     "/tmp/r/queue", "data_directory": "/tmp/r/data", "syslog_name": "rival", "myhostname": "rival.test",
		"inet_interfaces": "127.0.0.1", "inet_protocols": "ipv4", "mynetworks": "127.0.0.0/8",
		"mydestination": "", "alias_maps": "", "alias_database": "",
		"relay_domains": "example.test", "relayhost": "[127.0.0.1]:2526",
		"message_size_limit": "62914560", "mailbox_size_limit": "0",
	}
	if got := settings(t, files["main.cf"]); !maps.Equal(got, want) {
		t.Errorf("main.cf: %q", got)
	}
	if names := slices.Sorted(maps.Keys(files)); !slices.Equal(names, []string{"main.cf", "master.cf", "rsyslog.conf"}) {
		t.Errorf("the files %q", names)
	}
	if !strings.Contains(files["rsyslog.conf"], "*.* -/tmp/r/mail.log\n") {
		t.Errorf("rsyslog.conf: %q", files["rsyslog.conf"])
	}
}

// TestMasterFile: smtpd listens where it was told, every service of a mail queue is
// there, and none is in a chroot, which nobody has filled.
func TestMasterFile(t *testing.T) {
	files, err := instance(Options{}).files()
	if err != nil {
		t.Fatal(err)
	}
	commands := make(map[string]string)
	for line := range strings.Lines(files["master.cf"]) {
		words := strings.Fields(line)
		if len(words) != 8 || line[0] == ' ' || words[4] != "n" {
			t.Errorf("master.cf: the line %q", line)
			continue
		}
		commands[words[0]+" "+words[1]] = words[7]
	}
	for service, command := range map[string]string{
		"127.0.0.1:2525 inet": "smtpd", "cleanup unix": "cleanup", "qmgr unix": "qmgr", "rewrite unix": "trivial-rewrite",
		"smtp unix": "smtp", "relay unix": "smtp", "defer unix": "bounce", "bounce unix": "bounce", "anvil unix": "anvil", "retry unix": "error",
	} {
		if commands[service] != command {
			t.Errorf("master.cf: %s is %q, want %s", service, commands[service], command)
		}
	}
}

// TestEnvironment: every process gets it, beside what Postfix keeps by default.
func TestEnvironment(t *testing.T) {
	files, err := instance(Options{Environment: map[string]string{"LD_PRELOAD": "/tmp/r/s.so", "A": "5"}}).files()
	if err != nil {
		t.Fatal(err)
	}
	want := "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME A=5 LD_PRELOAD=/tmp/r/s.so"
	if got := settings(t, files["main.cf"])["import_environment"]; got != want {
		t.Errorf("import_environment = %q, want %q", got, want)
	}
	for _, value := range []string{"", "a b", "a,b", "$x", "a\nqueue_directory = /", "{"} {
		if _, err := instance(Options{Environment: map[string]string{"A": value}}).files(); err == nil {
			t.Errorf("the value %q was written", value)
		}
	}
}

func TestSettings(t *testing.T) {
	files, err := instance(Options{Settings: map[string]string{"in_flow_delay": "0", "inet_protocols": "all"}}).files()
	if err != nil {
		t.Fatal(err)
	}
	if got := settings(t, files["main.cf"]); got["in_flow_delay"] != "0" || got["inet_protocols"] != "all" || got["relay_domains"] != "example.test" {
		t.Errorf("main.cf: %q", got)
	}
}

func TestAddresses(t *testing.T) {
	for _, spoil := range []func(*Options){func(o *Options) { o.Address = "127.0.0.1" }, func(o *Options) { o.NextHop = "" }} {
		p := instance(Options{})
		spoil(&p.o)
		if _, err := p.files(); err == nil {
			t.Errorf("files were made for %+v", p.o)
		}
	}
}

// TestEmpty: the files of a queue go, its directories stay, and a queue that was
// never used is empty.
func TestEmpty(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "1"), filepath.Join(deep, "2")} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := empty(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(deep)
	top, _ := os.ReadDir(dir)
	if err != nil || len(left) != 0 || len(top) != 1 {
		t.Errorf("%d files left, %d above, %v", len(left), len(top), err)
	}
	if err := empty(filepath.Join(dir, "absent")); err != nil {
		t.Error(err)
	}
}

// TestUntil: a wait ends with the condition, with the patience, and with ctx.
func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		not := errors.New("not yet")
		err := until(t.Context(), "it", func() error {
			if tries++; tries < 5 {
				return not
			}
			return nil
		})
		if err != nil || tries != 5 {
			t.Errorf("%d tries, %v", tries, err)
		}
		begin := time.Now()
		err = until(t.Context(), "it", func() error { return not })
		if !errors.Is(err, not) || time.Since(begin) != startPatience {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		err = until(ctx, "it", func() error { return not })
		if !errors.Is(err, not) || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}
