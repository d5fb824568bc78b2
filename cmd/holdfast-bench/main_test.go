package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bench runs the command and returns its exit status and what it printed.
func bench(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestUsage(t *testing.T) {
	for _, line := range []string{
		"", "frobnicate", "send", "send --to nowhere", "send --to a:1 --size 5k", "send --to a:1 --count 0", "send --to a:1 --sessions 0",
		"send --to a:1 --run A_b", "send --to a:1 extra", "send --frob", "sink", "sink --listen :0 --ledger x --fault dot", "check --sent x",
		"check --sent x --arrived y -o yaml", "kills --kills 1", "kills --messages 10", "demo extra", "run --frob",
		"accept", "accept --to a:1 --size 5k", "accept --to a:1 --sessions 0", "accept --to a:1 --duration 0s", "accept --to a:1 --run a_b", "accept --to a:1 extra",
		"versus-postfix extra", "versus-postfix --rounds 0", "versus-postfix --duration 10ms", "versus-postfix --cells 5k:1", "versus-postfix --cells 4k:1,4k:1",
		"slow-disk extra", "slow-disk --rounds 0", "slow-disk --duration 1ms", "slow-disk --delay 0s",
		"costs --duration 1ms", "costs --parts memory",
		"drain extra", "drain --rounds 0", "drain --cells mix:10", "drain --cells 4k:1,4k:1", "drain --delay=-1ms", "drain --limit 1s",
	} {
		code, out, complaint := bench(t, strings.Fields(line)...)
		if code != exitUsage || out != "" || !strings.HasPrefix(complaint, "holdfast-bench: ") {
			t.Errorf("%q: status %d, output %q, complaint %q", line, code, out, complaint)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, command := range []string{"", "send", "sink", "check", "demo", "run", "kills", "accept", "versus-postfix", "slow-disk", "costs", "drain"} {
		code, out, complaint := bench(t, append(strings.Fields(command), "--help")...)
		if code != exitDone || !strings.Contains(out, "Usage:") || complaint != "" {
			t.Errorf("%q --help: status %d, %q, %q", command, code, out, complaint)
		}
	}
}

func TestCheckCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sent := write("sent",
		`{"intent":{"id":"m","attempt":1,"reverse_path":"s@x.test","recipients":["r+m@example.test"],"octets":{"size":3,"sha256":"aa"},"at":"2026-01-01T00:00:00Z"}}`,
		`{"outcome":{"id":"m","attempt":1,"recipients":["r+m@example.test"],"result":"ok","queue_id":"Q","at":"2026-01-01T00:00:00Z"}}`)
	good := write("good", `{"arrival":{"recipient":"r+m@example.test","reverse_path":"s@x.test","cuts":[{"size":9,"sha256":"bb"},{"size":3,"sha256":"aa"}],"at":"2026-01-01T00:00:00Z"}}`)
	bad := write("bad", `{"arrival":{"recipient":"r+m@example.test","reverse_path":"s@x.test","cuts":[{"size":9,"sha256":"bb"}],"at":"2026-01-01T00:00:00Z"}}`)
	none := write("none")
	for _, c := range []struct {
		arrived, last string
		code          int
	}{
		{good, "accepted=1 delivered=1 lost=0 altered=0 duplicates=0", exitDone},
		{bad, "accepted=1 delivered=0 lost=0 altered=1 duplicates=0", exitFailure},
		{none, "accepted=1 delivered=0 lost=1 altered=0 duplicates=0", exitFailure},
	} {
		if c.arrived == none {
			os.WriteFile(none, nil, 0o644)
		}
		code, out, _ := bench(t, "check", "--sent", sent, "--arrived", c.arrived)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != c.code || lines[len(lines)-1] != c.last {
			t.Errorf("%s: status %d, %q", filepath.Base(c.arrived), code, out)
		}
	}
	if code, _, _ := bench(t, "check", "--sent", sent, "--arrived", filepath.Join(dir, "absent")); code != exitFailure {
		t.Errorf("an absent ledger: status %d", code)
	}
}

// The plan keeps the promise of the run: half the kills in each phase, and at
// least half of them of the leader.
func TestPlanKills(t *testing.T) {
	for seed := range uint64(50) {
		plan := planKills(20, seed)
		leaders := 0
		for _, phase := range plan {
			if len(phase) != 10 {
				t.Fatalf("seed %d: %d kills in a phase", seed, len(phase))
			}
			for _, k := range phase {
				if k.leader {
					leaders++
				}
				if k.at <= 0 || k.at >= 1 || k.down <= 0 {
					t.Errorf("seed %d: %+v", seed, k)
				}
			}
		}
		if leaders < 8 {
			t.Errorf("seed %d: %d kills of the leader", seed, leaders)
		}
	}
}
