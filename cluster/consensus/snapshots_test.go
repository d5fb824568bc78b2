package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
)

var snapshotConfiguration = raft.Configuration{Servers: []raft.Server{
	{Suffrage: raft.Voter, ID: "a/1", Address: "a/1@a:7000"}, {Suffrage: raft.Nonvoter, ID: "b/1", Address: "b/1@b:7000"},
}}

// takeSnapshot stores a snapshot up to an index.
func takeSnapshot(t *testing.T, s raft.SnapshotStore, index uint64, state []byte) {
	t.Helper()
	_, transport := raft.NewInmemTransport("a") // only to write addresses
	sink, err := s.Create(raft.SnapshotVersionMax, index, 3, snapshotConfiguration, index-1, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(state); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// openSnapshots opens the snapshots in dir beside a log from first to last.
func openSnapshots(t *testing.T, dir string, first, last uint64) *sealedSnapshots {
	t.Helper()
	below, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	log := clustertest.NewRaftDisk(1, 0).Open()
	for index := first; index <= last; index++ {
		if err := log.StoreLog(&raft.Log{Index: index, Term: 3}); err != nil {
			t.Fatal(err)
		}
	}
	return &sealedSnapshots{store: below, dir: filepath.Join(dir, snapshotsDir), log: log}
}

// load takes the first snapshot that can be opened, as Raft does when it starts.
func load(s raft.SnapshotStore) (*raft.SnapshotMeta, []byte, error) {
	metas, err := s.List()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range metas {
		meta, r, err := s.Open(m.ID)
		if err != nil {
			continue
		}
		state, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, nil, err
		}
		// Raft goes on with what List said.
		m.Size = meta.Size
		if !reflect.DeepEqual(m, meta) {
			return nil, nil, fmt.Errorf("listed as %+v and opened as %+v", m, meta)
		}
		return meta, state, nil
	}
	if len(metas) > 0 {
		return nil, nil, errors.New("none can be loaded")
	}
	return nil, nil, nil
}

// TestSnapshotsAreSealed: what is read is what was written, without the seal; a
// snapshot of version 0.1 has none and is read all the same.
func TestSnapshotsAreSealed(t *testing.T) {
	for _, state := range [][]byte{nil, []byte("short"), bytes.Repeat([]byte("state "), 5000)} {
		for _, sealed := range []bool{true, false} {
			s := openSnapshots(t, t.TempDir(), 1, 20)
			to := raft.SnapshotStore(s)
			if !sealed {
				to = s.store
			}
			takeSnapshot(t, to, 10, state)
			m, got, err := load(s)
			if err != nil || m == nil || !bytes.Equal(got, state) || m.Size != int64(len(state)) || m.Index != 10 || m.Term != 3 ||
				m.ConfigurationIndex != 9 || !reflect.DeepEqual(m.Configuration, snapshotConfiguration) {
				t.Errorf("sealed %v, %d octets: %+v, %d octets, %v", sealed, len(state), m, len(got), err)
			}
		}
	}
}

// TestSnapshotFlippedBits: whatever bit of the newest snapshot flips, it is read
// as it was, or the older one is where the log leads on from there, or none.
func TestSnapshotFlippedBits(t *testing.T) {
	dir := t.TempDir()
	older, newer := []byte("the older state"), []byte("the newer state")
	s := openSnapshots(t, dir, 1, 1)
	takeSnapshot(t, s, 10, older)
	takeSnapshot(t, s, 20, newer)
	metas, err := s.List()
	if err != nil || len(metas) != 2 {
		t.Fatal(metas, err)
	}
	want := metas[0]
	for _, name := range []string{"meta.json", stateFile} {
		file := filepath.Join(dir, snapshotsDir, want.ID, name)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		unharmed, fell, refused := 0, 0, 0
		for bit := range len(content) * 8 {
			if (bit+bit/8)%3 != 0 {
				continue // a third of them, in each byte others
			}
			flipped := bytes.Clone(content)
			flipped[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(file, flipped, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, leads := range []bool{true, false} {
				first := uint64(11)
				if !leads {
					first = 12
				}
				m, got, err := load(openSnapshots(t, dir, first, 30))
				switch {
				case err != nil:
					refused++
					if leads {
						t.Fatalf("%s, bit %d of byte %d: %v", name, bit%8, bit/8, err)
					}
				case m != nil && m.Index == 20 && bytes.Equal(got, newer) && m.Term == 3 && m.ConfigurationIndex == 19 &&
					reflect.DeepEqual(m.Configuration, snapshotConfiguration) && m.Size == int64(len(newer)):
					unharmed++
				case leads && m != nil && m.Index == 10 && bytes.Equal(got, older):
					fell++
				default:
					t.Fatalf("%s, bit %d of byte %d, log from %d: %+v with %q", name, bit%8, bit/8, first, m, got)
				}
			}
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: unharmed %d, fell back %d, refused %d times", name, unharmed, fell, refused)
		if fell == 0 || refused == 0 {
			t.Errorf("%s: fell back %d times, refused %d", name, fell, refused)
		}
	}
	// A log that ends before the damaged snapshot did does not lead to it, either.
	if err := os.WriteFile(filepath.Join(dir, snapshotsDir, want.ID, stateFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, log := range [][2]uint64{{11, 19}, {1, 0}} {
		if m, _, err := load(openSnapshots(t, dir, log[0], log[1])); err == nil {
			t.Errorf("log from %d to %d: %+v", log[0], log[1], m)
		}
	}
}

// TestRegressionStartOnADamagedSnapshot: a member whose newest snapshot is damaged starts
// from the older one, level with the others, where its log leads on from there;
// otherwise it does not start, and says what to do.
//
// It holds this defect: where the newest snapshot was damaged a node began with an older
// one, also where the log did not lead on from there to what it had acknowledged.
func TestRegressionStartOnADamagedSnapshot(t *testing.T) {
	for _, test := range []struct {
		name     string
		trailing uint64
		lose     func(t *testing.T, dir string) // damages the newest snapshot
		starts   bool
	}{
		{"state, and the log leads on", 1000, flipIn(stateFile), true},
		{"metadata, and the log leads on", 1000, flipIn("meta.json"), true},
		{"state, and the log was cut", 5, flipIn(stateFile), false},
		{"metadata, and the log was cut", 5, flipIn("meta.json"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			// All on real stores: the oracle compares terms that it reads from disks.
			dirs := t.TempDir()
			dir := filepath.Join(dirs, "a")
			inCluster(t, 3, clusterOptions{trailing: test.trailing, threshold: 1 << 40}, func(t *testing.T, c *testCluster) {
				m := c.members["a"]
				for name, m := range c.members {
					m.open = func() (Stores, error) { return OpenStores(filepath.Join(dirs, name)) }
				}
				c.up()
				c.bootstrap()
				for range 2 {
					for range 20 {
						c.commit(c.leader())
					}
					c.must("all level", c.level)
					if err := m.node().Snapshot(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				m.kill()
				test.lose(t, filepath.Join(dir, snapshotsDir))
				err := m.start()
				if test.starts {
					if err != nil {
						t.Fatal(err)
					}
					c.commit(c.leader())
					c.must("all level", c.level)
				} else if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "new incarnation") {
					t.Errorf("started: %v", err)
				}
				c.oracle.clean()
			})
		})
	}
}

// flipIn flips a bit in the middle of a file of the newest snapshot.
func flipIn(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		newest, at := "", uint64(0)
		for _, e := range entries {
			if index, ok := snapshotIndex(e.Name()); ok && index > at {
				newest, at = e.Name(), index
			}
		}
		file := filepath.Join(dir, newest, name)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(content, []byte(`"Index":`)) + len(`"Index":`)
		if name == stateFile {
			i = len(content) / 3
		}
		content[i] ^= 1
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
