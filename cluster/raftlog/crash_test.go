package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

const crashDir = "/data/log"

// A crashModel knows what it gave to a log and what it was promised.
type crashModel struct {
	random  *rand.Rand
	options Options
	log     *Log
	serial  uint64

	// held are the entries that must be there, by index, as their serial numbers;
	// bounds follow from them. While an operation is under way that may or may not
	// be durable, next is what held may have become instead.
	held, next map[uint64]uint64
}

func newCrashModel(seed uint64) *crashModel {
	m := &crashModel{random: rand.New(rand.NewPCG(seed, 9)), held: make(map[uint64]uint64)}
	m.options = Options{SegmentBytes: int64(12<<10 + m.random.IntN(40<<10)), PoolFiles: m.random.IntN(3)}
	return m
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
		err = m.log.Delete(from, to)
	}
	if err == nil {
		m.held, m.next = m.next, nil
	}
	return err
}

// TestCrashHistories cuts the power, or lets an operation fail, at any operation
// of random histories, of Open too: 5,000 times and more. After each restart
// every entry that was acknowledged is there as it was, none that was deleted is
// back, and no crash passes for damage.
func TestCrashHistories(t *testing.T) {
	restarts, torn, failed := 0, 0, 0
	for seed := uint64(0); restarts < 5000; seed++ {
		disk, m := clustertest.NewDisk(seed), newCrashModel(seed)
		for life := range 12 {
			if m.random.IntN(4) > 0 {
				f := clustertest.Fault{Skip: m.random.IntN(60), Crash: true}
				if m.random.IntN(4) == 0 {
					f.Crash, f.Err, f.Short = false, syscall.EIO, m.random.IntN(2) == 0
				}
				disk.Inject(f)
			}
			err := m.open(disk.Mount())
			if errors.Is(err, clustertest.ErrKilled) {
				disk.Crash()
				continue
			}
			if errors.Is(err, syscall.EIO) {
				failed++
				disk.Kill()
				continue
			}
			if err != nil {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			restarts++
			torn += m.log.Stats().Torn
			for range m.random.IntN(40) {
				if err = m.step(); err != nil {
					break
				}
			}
			if errors.Is(err, syscall.EIO) {
				failed++
			} else if err != nil && !errors.Is(err, clustertest.ErrKilled) {
				t.Fatalf("seed %d, life %d: %v", seed, life, err)
			}
			switch m.random.IntN(3) {
			case 0:
				_ = m.log.Close()
				disk.Kill()
			case 1:
				disk.Kill()
			default:
				disk.Crash()
			}
		}
	}
	t.Logf("%d restarts, %d torn records, %d errors", restarts, torn, failed)
	if torn == 0 || failed == 0 {
		t.Error("no crash tore anything, or no error was met")
	}
}
