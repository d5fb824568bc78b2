package sim

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/fsm"
)

// The archives in testdata/datadirs are the data directories of a whole cluster,
// as the version that the archive is named for left them: n1 was stopped, n2 and
// n3 were killed. Every later version must open them and deliver what lies in
// them. A version that changes a format adds its own:
//
//	go test ./deploy/sim -run '^TestDataDirectories$' -write-datadirs NAME
var writeDataDirs = flag.String("write-datadirs", "", "write testdata/datadirs/NAME.tar.gz")

const (
	dataDirs      = "testdata/datadirs"
	oldestDataDir = "0.1.tar.gz"
	// dataDirsBytesMax is how long an archive may be.
	dataDirsBytesMax = 300 << 10
)

// The letters in an archive: some were delivered, the others are queued; of those
// some came before the snapshots, the others after.
func deliveredLetters() []letterTo { return numbered("delivered", 5) }
func earlyLetters() []letterTo     { return numbered("early", 7) }
func lateLetters() []letterTo      { return numbered("late", 7) }

func numbered(kind string, count int) []letterTo {
	var letters []letterTo
	for i := range count {
		// Some are short, some longer than a page.
		text := fmt.Sprintf("%s letter %d", kind, i) + strings.Repeat(fmt.Sprintf(" %s and %d more", kind, i), i*i*8)
		letters = append(letters, letterTo{to: fmt.Sprintf("%s-%d@%s", kind, i, relayDomains[i%2]), text: text})
	}
	return letters
}

// TestDataDirectories starts a cluster on the directories of each version. What
// was queued arrives once and unaltered, what was delivered does not arrive
// again, and the cluster takes new mail.
func TestDataDirectories(t *testing.T) {
	if *writeDataDirs != "" {
		tell(t, 61, func(t *testing.T, s *story) { s.writeDataDirs(*writeDataDirs) })
	}
	archives, err := filepath.Glob(filepath.Join(dataDirs, "*.tar.gz"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, archive := range archives {
		t.Run(filepath.Base(archive), func(t *testing.T) {
			tell(t, 61, func(t *testing.T, s *story) { s.readDataDirs(archive) })
		})
	}
}

// scheduled is how the first relay domain is configured in all archives but the
// oldest: commands and snapshots have what that one's version did not know.
func (s *story) scheduled() fsm.Domain {
	return fsm.Domain{
		Name:           relayDomains[0],
		Targets:        []fsm.Target{{Host: s.network.Host(primaryName).IP().String(), Port: 25}},
		Schedule:       fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: 10 * fsm.RetryMinDefault, Lifetime: fsm.LifetimeDefault},
		ConnectionsMax: 7,
	}
}

func (s *story) writeDataDirs(name string) {
	s.host = true
	s.begin()
	if err := s.Do(s.ctx, fsm.PutDomain{Domain: s.scheduled()}); err != nil {
		s.t.Fatal(err)
	}
	s.primaryUp()
	for i, l := range deliveredLetters() {
		s.mustGive(nodeNames[i%3], l, thenRead)
	}
	s.settleDown()
	s.PrimaryDown()
	for i, l := range earlyLetters() {
		s.mustGive(nodeNames[i%3], l, thenRead)
	}
	time.Sleep(time.Minute) // attempts are made, in vain
	for _, name := range nodeNames {
		if err := s.node(name).node.Member().Node().Snapshot(s.ctx); err != nil {
			s.t.Fatal(err)
		}
	}
	for i, l := range lateLetters() {
		s.mustGive(nodeNames[i%3], l, thenRead)
	}
	time.Sleep(time.Minute)
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		s.t.Fatal(err)
	}
	w := tar.NewWriter(z)
	// A copy of the directory of a node that runs, and does nothing at this
	// moment, is what a kill leaves.
	s.pack(w, "n2")
	s.pack(w, "n3")
	if err := s.Stop("n1"); err != nil {
		s.t.Fatal(err)
	}
	s.pack(w, "n1")
	if err := errors.Join(w.Close(), z.Close(), os.MkdirAll(dataDirs, 0o755)); err != nil {
		s.t.Fatal(err)
	}
	if b.Len() > dataDirsBytesMax {
		s.t.Fatalf("%d octets, at most %d", b.Len(), dataDirsBytesMax)
	}
	if err := os.WriteFile(filepath.Join(dataDirs, name+".tar.gz"), b.Bytes(), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// pack adds the data directory of a node.
func (s *story) pack(w *tar.Writer, name string) {
	s.t.Helper()
	from := s.config(name).DataDir
	err := filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: path.Join(name, filepath.ToSlash(rel)), Mode: 0o600, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// unpack makes the data directories of an archive, and returns the names in it.
func (s *story) unpack(archive string) (names []string) {
	s.t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		s.t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			s.t.Fatal(err)
		}
		node, rest, _ := strings.Cut(h.Name, "/")
		to := filepath.Join(s.config(node).DataDir, filepath.FromSlash(rest))
		content, err := io.ReadAll(r)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, 0o600)); err != nil {
			s.t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

func (s *story) readDataDirs(archive string) {
	names := s.unpack(archive)
	// What an archive is there for lies in it.
	for _, pattern := range []string{"spool/*.seg", "raft/log/*.seg", "raft/log/*.free", "raft/raft.db", "raft/snapshots/*/state.bin"} {
		for _, node := range nodeNames {
			if !slices.ContainsFunc(names, func(n string) bool { ok, _ := path.Match(node+"/"+pattern, n); return ok }) {
				s.t.Errorf("no %s of %s in %v", pattern, node, names)
			}
		}
	}
	time.Sleep(24 * time.Hour) // the directories are older than the bubble
	s.host = true
	s.start(nodeNames...)
	s.await(time.Minute, "all know the relay domains", func() bool {
		return !slices.ContainsFunc(nodeNames, func(name string) bool { return !s.knows(name) })
	})
	if filepath.Base(archive) != oldestDataDir {
		want := s.scheduled()
		for _, name := range nodeNames {
			if d, _ := s.member(name).Domain(want.Name); d.Schedule != want.Schedule || d.ConnectionsMax != want.ConnectionsMax {
				s.t.Errorf("%s has the domain as %+v", name, d)
			}
		}
	}
	s.register() // the primary may have another address now
	queued := append(earlyLetters(), lateLetters()...)
	s.await(time.Minute, "all know what is queued", func() bool {
		for _, name := range nodeNames {
			if s.member(name).Totals().Live != len(queued) {
				return false
			}
		}
		return true
	})
	s.mustGive("n2", dora, thenVanish)
	s.primaryUp()
	for _, l := range append(queued, dora) {
		s.await(time.Hour, l.to+" is delivered", func() bool { return len(s.arrived.of(l.to)) > 0 })
	}
	s.settleDown()
	for _, l := range append(queued, dora) {
		want := ledger.DigestOf(fmt.Appendf(nil, "Subject: test\r\n\r\n%s\r\n", l.text))
		arrivals := s.arrived.of(l.to)
		if len(arrivals) != 1 {
			s.t.Errorf("%s arrived %d times", l.to, len(arrivals))
		}
		for _, a := range arrivals {
			if !slices.ContainsFunc(a.Cuts, func(o ledger.Octets) bool { return o.SHA256 == want }) {
				s.t.Errorf("%s arrived altered: %v", l.to, a.Cuts)
			}
		}
	}
	for _, l := range deliveredLetters() {
		if n := len(s.arrived.of(l.to)); n != 0 {
			s.t.Errorf("%s was delivered before, and arrived %d times more", l.to, n)
		}
	}
}
