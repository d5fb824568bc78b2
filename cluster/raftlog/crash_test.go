package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const crashDir = "/data/log"

// crashPoints is how many power failures TestCrashPoints tries, unless the
// environment says otherwise.
const crashPoints = 1000

var order = clustertest.Order{Lasting: func(base string) bool { return strings.HasSuffix(base, ".seg") }}

// A crashModel knows what it gave to a log and what it was promised.
type crashModel struct {
	random  *rand.Rand
	disk    *clustertest.Disk
	options Options
	log     *Log
	lift    func() // takes back an injected error
	serial  uint64

	// held are the entries that must be there, by index, as their serial numbers;
	// bounds follow from them. While an operation is under way that may or may not
	// be durable, next is what held may have become instead.
	held, next map[uint64]uint64

	tally *crashTally
}

// A crashTally counts what the workloads went through.
type crashTally struct{ lives, torn, failed, appended, deleted int }

func newCrashModel(seed uint64, disk *clustertest.Disk) *crashModel {
	m := &crashModel{
		random: rand.New(rand.NewPCG(seed, 9)), disk: disk, lift: func() {},
		held: make(map[uint64]uint64), tally: new(crashTally),
	}
	m.options = Options{
		SegmentBytes: int64(12<<10 + m.random.IntN(40<<10)), PoolFiles: m.random.IntN(3),
		Random: rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}),
	}
	return m
}

// fail lets one of the next operations fail, once in a while.
func (m *crashModel) fail(one int) {
	if m.random.IntN(one) != 0 {
		return
	}
	m.lift() // one at a time, or the older one could not be taken back
	m.lift = m.disk.Inject(clustertest.Fault{
		Skip: m.random.IntN(8), Err: []error{syscall.EIO, syscall.ENOSPC}[m.random.IntN(2)], Short: m.random.IntN(2) == 0,
	})
}

func injected(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) }

// Open opens the log and holds it to its promises.
func (m *crashModel) Open(fs vfs.FS) error {
	m.lift()
	m.fail(8)
	err := m.open(fs)
	if injected(err) {
		m.tally.failed++
		if m.log != nil {
			m.Close()
		}
		m.lift()
		err = m.open(fs)
	}
	if err != nil && m.log != nil {
		m.Close()
	}
	if err == nil {
		m.tally.lives++
		m.tally.torn += m.log.Stats().Torn
	}
	return err
}

func (m *crashModel) Close() {
	_ = m.log.Close()
	m.log = nil
}

// Step does one thing with the log.
func (m *crashModel) Step() (clustertest.Next, error) {
	switch m.random.IntN(30) {
	case 0:
		return clustertest.Restart, nil
	case 1:
		return clustertest.Kill, nil
	case 2:
		m.fail(1)
	}
	err := m.step()
	if injected(err) {
		m.tally.failed++
		return clustertest.Kill, nil
	}
	return clustertest.Continue, err
}

// octetsOf is what the entry of a serial number says.
func octetsOf(serial uint64) []byte {
	r := rand.New(rand.NewPCG(serial, 1))
	b := make([]byte, 8+r.IntN(1<<r.IntN(13)))
	binary.BigEndian.PutUint64(b, serial)
	for i := 8; i < len(b); i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (m *crashModel) span() (first, last uint64) {
	for index := range m.held {
		if first == 0 || index < first {
			first = index
		}
		last = max(last, index)
	}
	return first, last
}

// open is a restart: what was promised is there, and nothing else but what was
// under way.
func (m *crashModel) open(fs vfs.FS) error {
	l, err := Open(fs, crashDir, m.options)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	m.log = l
	found := make(map[uint64]uint64)
	first, last := l.Bounds()
	for index := first; index > 0 && index <= last; index++ {
		term, octets, err := l.Read(index, nil)
		if err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w", index, first, last, err)
		}
		if len(octets) < 8 || !bytes.Equal(octets, octetsOf(binary.BigEndian.Uint64(octets))) || term != binary.BigEndian.Uint64(octets)%100 {
			return fmt.Errorf("entry %d is not what was written", index)
		}
		found[index] = binary.BigEndian.Uint64(octets)
	}
	for index, serial := range m.held {
		if m.next != nil {
			if _, stays := m.next[index]; !stays {
				continue // it was being deleted
			}
		}
		if found[index] != serial {
			return fmt.Errorf("entry %d is %d, was acknowledged as %d (log from %d to %d)", index, found[index], serial, first, last)
		}
	}
	for index, serial := range found {
		if m.held[index] != serial && (m.next == nil || m.next[index] != serial) {
			return fmt.Errorf("entry %d is %d, which was deleted or never written", index, serial)
		}
	}
	m.held, m.next = found, nil
	return nil
}

// step does one thing with the log. Its errors are the disk's.
func (m *crashModel) step() error {
	first, last := m.span()
	m.next = make(map[uint64]uint64)
	for index, serial := range m.held {
		m.next[index] = serial
	}
	var err error
	switch n := m.random.IntN(12); {
	case last == 0 || n < 7:
		begin := last + 1
		if last == 0 {
			begin = 1 + m.random.Uint64N(1000)
		}
		var entries []Entry
		for i := range uint64(1 + m.random.IntN(8)) {
			m.serial++
			b := octetsOf(m.serial)
			cut := m.random.IntN(len(b))
			entries = append(entries, Entry{Index: begin + i, Term: m.serial % 100, Pieces: [][]byte{b[:cut], b[cut:]}})
			m.next[begin+i] = m.serial
		}
		m.tally.appended += len(entries)
		err = m.log.Append(entries)
	case n == 7:
		m.log.Prewrite()
	default:
		from, to := first, last
		if n < 10 { // a prefix, behind a snapshot
			to = first + m.random.Uint64N(last-first+1)
		} else if n < 11 { // a suffix, in conflict
			from = first + m.random.Uint64N(last-first+1)
		}
		for index := from; index <= to; index++ {
			delete(m.next, index)
		}
		m.tally.deleted += int(to - from + 1)
		err = m.log.Delete(from, to)
	}
	if err == nil {
		m.held, m.next = m.next, nil
		m.disk.Note(clustertest.Acknowledged)
	}
	return err
}

func explorer(total *crashTally) clustertest.Explorer {
	return clustertest.Explorer{
		Start: func(seed uint64, disk *clustertest.Disk) clustertest.Workload {
			m := newCrashModel(seed, disk)
			if total != nil {
				m.tally = total
			}
			return m
		},
		Steps:   50,
		Ordered: order.Check,
	}
}

// TestCrashPoints cuts the power at any operation of random workloads, of Open
// too, and lets some fail. After each restart every entry that was acknowledged
// is there as it was, none that was deleted is back, and no crash passes for
// damage; and everything is done in an order that says so.
func TestCrashPoints(t *testing.T) { explorer(nil).Check(t, crashPoints) }

// A point that fails must fail again when somebody looks, and the workloads must
// go through everything that they are there for.
func TestCrashPointsRepeatAndVary(t *testing.T) {
	var total crashTally
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			if err := explorer(&total).Repeats(clustertest.Point{Workload: seed, Operation: 40 + 2*int(seed), Fate: seed}); err != nil {
				t.Error(err)
			}
		})
	}
	t.Logf("%+v", total)
	if total.lives == 0 || total.torn == 0 || total.failed == 0 || total.appended == 0 || total.deleted == 0 {
		t.Errorf("something never happened: %+v", total)
	}
}

// The points must find a log that leaves out what its promises rest on.
func TestCrashPointsFindControls(t *testing.T) {
	for name, lie := range map[string]clustertest.Lie{
		"no sync of files":         {Files: true},
		"no sync of the directory": {Dirs: true},
		"promised before the sync": {Late: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := explorer(nil)
			e.Ordered = nil // by what is lost alone
			e.Wrap = lie.Wrap
			at, tried, err := e.Explore(t, crashPoints)
			if err == nil {
				t.Fatalf("not found in %d points", tried)
			}
			t.Logf("found after %d points: %v: %v", tried, at, err)
		})
	}
}
