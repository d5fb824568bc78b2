package node

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/holdfast-mx/holdfast/"

// arrows lists, for each package of the product, the packages of the product
// that it may import. An arrow that is not here is a change of architecture:
// argue for it in docs/architecture.md, then add it. (deploy/controls is empty but
// in the build for negative controls.)
var arrows = map[string][]string{
	"fsm":      {"fsm/mail", "proto/queuepb"},
	"fsm/mail": {},

	"cluster": {"cluster/consensus", "cluster/dispatch", "cluster/peer", "cluster/spool", "fsm", "fsm/mail", "deploy/controls"},
	// Consensus reads a body's name without knowing what a command is.
	"cluster/consensus": {"cluster/raftlog", "cluster/vfs", "fsm/mail", "deploy/controls"},
	"cluster/raftlog":   {"cluster/segment", "cluster/vfs"}, // entries, and not what Raft makes of them
	"cluster/spool":     {"cluster/segment", "cluster/vfs", "fsm/mail", "deploy/controls"},
	"cluster/vfs":       {},
	"cluster/segment":   {"cluster/vfs"}, // records, and not whose
	"cluster/transport": {},
	"cluster/gossip":    {"cluster/transport"},                             // for what a node may be called
	"cluster/peer":      {"cluster/transport", "fsm/mail", "proto/peerpb"}, // who called is transport's to say
	"cluster/dispatch":  {"fsm", "fsm/mail", "deploy/controls"},
	"cluster/admin":     {"fsm", "fsm/mail", "proto/adminpb"},

	"smtpd":          {"smtpd/gate", "fsm/mail", "deploy/controls"},
	"smtpd/gate":     {"fsm/mail", "deploy/controls"},
	"smtpd/ondemand": {"fsm/mail"},

	"delivery":            {"delivery/route", "delivery/smtpclient", "delivery/tlspolicy", "fsm", "fsm/mail", "deploy/controls"},
	"delivery/dnscheck":   {"delivery/route", "delivery/smtpclient", "delivery/tlspolicy", "fsm/mail"},
	"delivery/dsn":        {"fsm/mail"},                              // values in, octets out
	"delivery/route":      {"delivery/tlspolicy", "fsm", "fsm/mail"}, // TLSA records are looked up, and not judged
	"delivery/sts":        {"delivery/tlspolicy", "fsm/mail"},
	"delivery/tlspolicy":  {"fsm/mail"},
	"delivery/smtpclient": {"fsm/mail"},

	"proto/queuepb": {},
	"proto/peerpb":  {},
	"proto/adminpb": {},

	// The generator is in builds for benchmarks alone.
	"cmd/holdfastd":           {"cmd/holdfastd/config", "cmd/holdfastd/node", "cmd/holdfastd/generator"},
	"cmd/holdfastd/generator": {"fsm/mail"},
	"cmd/holdfastd/config":    {"fsm", "fsm/mail"},
	"cmd/holdfastd/node":      {"*"}, // the one package that sees all rooms
	// It looks at DNS itself, as the outside does, and not through a node.
	"cmd/holdfast": {"cluster/transport", "delivery/dnscheck", "delivery/route", "delivery/sts", "proto/adminpb", "fsm", "fsm/mail"},
}

// tools are not part of the product: they may import what they measure and
// test.
var tools = []string{"cmd/holdfast-bench", "cluster/clustertest", "delivery/deliverytest", "fsm/fsmtest", "deploy"}

// apart lists the tools, with their tests, that must not know something of ours.
var apart = []struct{ tool, from, why string }{
	{"deploy/torture", "deploy/sim", "the long run is of real binaries; what both need stands in a package of its own"},
	{"deploy/sim", "deploy/torture", "the same"},
	{"cmd/holdfast-bench/ledger", "", "what judges the product shares nothing with it"},
}

// doors lists the foundations that only some packages may import, and why.
var doors = []struct {
	foundation string
	allowed    []string
	why        string
}{
	{"github.com/hashicorp/raft", []string{"cluster/consensus"}, "its defaults lose mail; the append rule stands around it"},
	{"github.com/hashicorp/raft-boltdb", []string{"cluster/consensus"}, "opened with the options that consensus needs"},
	{"go.etcd.io/bbolt", []string{"cluster/consensus"}, "only below Raft's stores"},
	{"github.com/hashicorp/memberlist", []string{"cluster/gossip"}, "it blocks and panics where it is used carelessly"},
	{"github.com/emersion/go-smtp", []string{"smtpd"}, "what it gets wrong is cured by the gate in front of it"},
	{"github.com/emersion/go-sasl", []string{"smtpd/ondemand"}, "nobody else authenticates"},
	{"golang.org/x/crypto/bcrypt", []string{"cmd/holdfastd/node"}, "a password is made a hash, and compared with one, in one place"},
	{"github.com/miekg/dns", []string{"delivery/route"}, "answers are compared and truncation retried in one place"},
	{"google.golang.org/grpc", []string{"cluster/peer", "cluster/admin", "cmd/holdfast", "proto"}, "rooms meet through small interfaces, not through RPC types"},
	{"github.com/prometheus", []string{}, "only in files named metrics.go"},
	{"os", []string{"cluster/vfs", "cluster/consensus", "cluster/transport", "cluster/gossip", "cluster/admin", "delivery/route", "cmd"}, "the others get their files through constructors"},
	{"math/rand", []string{}, "random choices come through constructors"},
	{"math/rand/v2", []string{"delivery", "cluster/gossip", "cluster/peer", "cluster/consensus"}, "only to spread retries, and what all nodes do now and then; never where a test must repeat itself"},
}

func within(pkg, prefix string) bool { return pkg == prefix || strings.HasPrefix(pkg, prefix+"/") }

// TestImportLaws holds the import laws of docs/architecture.md.
func TestImportLaws(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "run") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		for _, law := range apart {
			if within(pkg, law.tool) {
				checkApart(t, path, law.from, law.why)
			}
		}
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		if slices.ContainsFunc(tools, func(tool string) bool { return within(pkg, tool) }) {
			return nil
		}
		seen[pkg] = true
		allowed, known := arrows[pkg]
		if !known {
			t.Errorf("package %s is not in the list of rooms", pkg)
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if to, ours := strings.CutPrefix(imported, module); ours {
				if !slices.Contains(allowed, to) && !slices.Contains(allowed, "*") {
					t.Errorf("%s: new arrow %s -> %s", path, pkg, to)
				}
				continue
			}
			checkDoors(t, path, pkg, imported)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range arrows {
		if !seen[pkg] {
			t.Errorf("package %s is in the list of rooms and does not exist", pkg)
		}
	}
}

// checkApart reports what a file imports of ours from a package, or from any.
func checkApart(t *testing.T, path, from, why string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		if to, ours := strings.CutPrefix(imported, module); ours && (from == "" || within(to, from)) {
			t.Errorf("%s imports %s: %s", path, to, why)
		}
	}
}

func checkDoors(t *testing.T, path, pkg, imported string) {
	t.Helper()
	if pkg == "cmd/holdfastd/node" && !strings.HasPrefix(imported, "github.com/hashicorp/raft") {
		return // it joins the rooms, and may name what they are made of; Raft it may not
	}
	for _, door := range doors {
		if !within(imported, door.foundation) || imported != door.foundation && !strings.Contains(door.foundation, ".") {
			continue
		}
		if door.foundation == "github.com/prometheus" && filepath.Base(path) == "metrics.go" {
			continue
		}
		if !slices.ContainsFunc(door.allowed, func(room string) bool { return within(pkg, room) }) {
			t.Errorf("%s: %s imports %s: %s", path, pkg, imported, door.why)
		}
	}
}

// TestImportWithoutReplace: a replace directive would not reach those who
// install the module by its version.
func TestImportWithoutReplace(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join("..", "..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("go.mod: %s", line)
		}
	}
}
