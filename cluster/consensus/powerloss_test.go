//go:build linux

package consensus

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
)

const (
	// powerLossDir tells a child process which directory to write to.
	powerLossDir = "HOLDFAST_TEST_POWER_LOSS"
	// powerLossRounds is how often the power fails.
	powerLossRounds = 30
	// powerLossAcks is how many writes a child may acknowledge before, at most.
	powerLossAcks = 25
	imageBytes    = 96 << 20

	unsyncedContent = "nobody syncs this"
)

// TestPowerLossChild is the process whose host loses its power, not a test: it
// writes entries, terms and votes, and says each number once it is durable.
func TestPowerLossChild(t *testing.T) {
	dir := os.Getenv(powerLossDir)
	if dir == "" {
		t.Skip("only for TestPowerLoss")
	}
	s, err := OpenStores(dir)
	if err != nil {
		t.Fatal(err)
	}
	from, err := s.Stable.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		t.Fatal(err)
	}
	if from > 0 && from%snapshotEvery == 0 { // the power failed before it, perhaps
		takeSnapshot(t, s.Snapshots, from, stateUpTo(from))
	}
	for n := from + 1; ; n++ {
		// In the order in which Raft does it.
		for _, err := range []error{
			s.Stable.SetUint64([]byte("CurrentTerm"), n),
			s.Stable.SetUint64([]byte("LastVoteTerm"), n),
			s.Stable.Set([]byte("LastVoteCand"), candidate(n)),
			s.Log.StoreLogs([]*raft.Log{{Index: n, Term: n, Data: []byte("entry " + strconv.FormatUint(n, 10))}}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if n%snapshotEvery == 0 {
			takeSnapshot(t, s.Snapshots, n, stateUpTo(n))
		}
		fmt.Println("durable", n)
	}
}

// snapshotEvery is after how many entries the child takes a snapshot.
const snapshotEvery = 5

func stateUpTo(n uint64) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "state up to %d ", n), 400)
}

func candidate(n uint64) []byte { return fmt.Appendf(nil, "n%d/%d", n%3, n) }

// TestPowerLoss: the power of a real process on a real file system fails, again
// and again: whatever raft-boltdb, the log and the snapshots had said was durable
// is there when the file system is mounted again. What nobody synced is not: that
// shows that the power really failed.
func TestPowerLoss(t *testing.T) {
	d := newPowerDisk(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var acknowledged uint64 // before the power failed
	forgotten := 0
	random := rand.New(rand.NewPCG(1, 2))
	for round := range powerLossRounds {
		must(d.Mount())
		child := exec.Command("/proc/self/exe", "-test.run=^TestPowerLossChild$")
		child.Env = append(os.Environ(), powerLossDir+"="+filepath.Join(d.Dir, "raft"))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		unsynced := filepath.Join(d.Dir, "unsynced")
		err = errors.Join(os.RemoveAll(unsynced), syncOf(d.Dir), os.WriteFile(unsynced, []byte(unsyncedContent), 0o600))
		// What it says once the cut has begun does not count: of a transaction of the
		// journal that was given up just then, ext4 may tell a sync that all is well
		// (jbd2_complete_transaction), which nobody would hear without power.
		said := make(chan uint64)
		var last atomic.Uint64
		go func() {
			defer close(said)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if n, ok := strings.CutPrefix(lines.Text(), "durable "); ok {
					if n, err := strconv.ParseUint(n, 10, 64); err == nil {
						last.Store(n)
						said <- n
					}
				}
			}
		}()
		before := acknowledged
		for range 1 + random.IntN(powerLossAcks) {
			if _, more := <-said; !more {
				err = errors.Join(err, errors.New("the child ended by itself"))
				break
			}
		}
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			for range said {
			}
		}()
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond) // anywhere in a write
		acknowledged = last.Load()
		err = errors.Join(err, d.Cut())
		_ = child.Process.Kill()
		<-drained
		_ = child.Wait()
		must(d.Unmount())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		must(d.Mount())
		// Its name may be there, since the journal is everybody's; not its content.
		if content, _ := os.ReadFile(unsynced); string(content) != unsyncedContent {
			forgotten++
		}
		if err := durable(filepath.Join(d.Dir, "raft"), acknowledged); err != nil {
			t.Fatalf("round %d, %d to %d acknowledged: %v", round, before+1, acknowledged, err)
		}
		must(d.Unmount())
	}
	t.Logf("%d power failures, %d writes acknowledged, %d times unsynced content was gone", powerLossRounds, acknowledged, forgotten)
	if forgotten < powerLossRounds/2 {
		t.Errorf("unsynced content was gone only %d times of %d: this is no power failure", forgotten, powerLossRounds)
	}
}

// durable opens the stores and compares them with the last number that was said
// to be durable. They may have more.
func durable(dir string, n uint64) error {
	s, err := OpenStores(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	term, err := s.Stable.GetUint64([]byte("CurrentTerm"))
	if err != nil || term < n {
		return fmt.Errorf("term %d, %v", term, err)
	}
	voted, err := s.Stable.GetUint64([]byte("LastVoteTerm"))
	if err != nil || voted < n || voted > term {
		return fmt.Errorf("vote in term %d of %d, %v", voted, term, err)
	}
	// A kill between the two leaves the vote of the term before.
	whom, err := s.Stable.Get([]byte("LastVoteCand"))
	if err != nil || string(whom) != string(candidate(voted)) && (voted == n || string(whom) != string(candidate(voted-1))) {
		return fmt.Errorf("vote in term %d for %q, %v", voted, whom, err)
	}
	last, err := s.Log.LastIndex()
	if err != nil || last < n || last > term {
		return fmt.Errorf("the log ends at %d, %v", last, err)
	}
	for index := uint64(1); index <= last; index++ {
		var l raft.Log
		if err := s.Log.GetLog(index, &l); err != nil || string(l.Data) != "entry "+strconv.FormatUint(index, 10) || l.Term != index {
			return fmt.Errorf("entry %d: %q of term %d, %v", index, l.Data, l.Term, err)
		}
	}
	m, state, err := load(s.Snapshots)
	switch {
	case err != nil:
		return fmt.Errorf("snapshots: %w", err)
	case m == nil && n >= snapshotEvery, m != nil && m.Index < n-n%snapshotEvery:
		return fmt.Errorf("newest snapshot: %+v", m)
	case m != nil && !bytes.Equal(state, stateUpTo(m.Index)):
		return fmt.Errorf("the snapshot up to %d is another one: %q", m.Index, state[:min(len(state), 40)])
	}
	// The child goes on behind its term, and a log has no gaps.
	if last < term {
		return s.Stable.SetUint64([]byte("CurrentTerm"), last)
	}
	return nil
}

// newPowerDisk makes a file system whose power can be cut, or skips the test
// where there can be none. With CI=true there must be.
func newPowerDisk(t *testing.T) *clustertest.PowerDisk {
	t.Helper()
	d, err := clustertest.NewPowerDisk(t.TempDir(), imageBytes)
	if errors.Is(err, clustertest.ErrNoPowerDisk) && os.Getenv("CI") == "" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func syncOf(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
