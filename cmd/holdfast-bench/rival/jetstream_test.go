package rival

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program writes a shell script to stand for a binary.
func program(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestJetStream(t *testing.T) {
	dir := t.TempDir()
	o := JetStreamOptions{
		Dir:     dir,
		Server:  program(t, dir, "server", "exec sleep 1000"),
		Clients: []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, Routes: []string{"127.0.0.1:4", "127.0.0.1:5", "127.0.0.1:6"},
		Publisher: program(t, dir, "publisher", `echo "$*" >`+dir+`/asked; echo '{"accepted":2,"octets":128,"elapsed_ns":4000000000,"latencies_us":[7,9]}'`),
	}
	j, err := StartJetStream(o)
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(dir, "nats-2", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"server_name: nats-2\n", `listen: "127.0.0.1:2"`, `listen: "127.0.0.1:5"`, "sync_interval: always\n",
		`routes: ["nats://127.0.0.1:4", "nats://127.0.0.1:5", "nats://127.0.0.1:6"]`,
	} {
		if !strings.Contains(string(config), want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
	p, err := j.Publish(t.Context(), Load{Size: 64, Publishers: 5, Duration: 3 * time.Second, OctetsMax: 999})
	if err != nil || p.Accepted != 2 || len(p.LatenciesUS) != 2 || p.PerSecond() != 0.5 {
		t.Errorf("%+v, %v", p, err)
	}
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	want := "-servers nats-1=127.0.0.1:1,nats-2=127.0.0.1:2,nats-3=127.0.0.1:3 -size 64 -publishers 5 -duration 3s -octets-max 999"
	if got := strings.TrimSpace(string(asked)); got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
	processes := j.processes
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	for _, cmd := range processes {
		if cmd.ProcessState == nil {
			t.Error("a server was not waited for")
		}
	}
}

func TestPublisherFails(t *testing.T) {
	dir := t.TempDir()
	j := &JetStream{o: JetStreamOptions{Publisher: program(t, dir, "publisher", "echo no stream >&2; exit 1")}}
	if _, err := j.Publish(t.Context(), Load{}); err == nil || !strings.Contains(err.Error(), "no stream") {
		t.Errorf("%v", err)
	}
	j.o.Publisher = program(t, dir, "publisher", "echo nonsense")
	if _, err := j.Publish(t.Context(), Load{}); err == nil {
		t.Error("nonsense is a result")
	}
}
