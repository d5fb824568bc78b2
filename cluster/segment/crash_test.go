package segment_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A model knows what it wrote to a set and what it was promised about it.
type model struct {
	options segment.Options
	set     *segment.Set
	random  *rand.Rand

	next  int
	size  map[int]int
	place map[int]segment.Place
	// durable records were synced, and their segment was not asked to go;
	// freed ones are in a segment whose Free returned nil. Of the others either
	// may be true.
	durable map[int]bool
	freed   map[int]bool
	pending []int // appended since the last sync
}

func newModel(seed uint64) *model {
	m := &model{
		random: rand.New(rand.NewPCG(seed, 3)),
		size:   make(map[int]int), place: make(map[int]segment.Place),
		durable: make(map[int]bool), freed: make(map[int]bool),
	}
	m.options = segment.Options{
		SegmentBytes: int64(12<<10 + m.random.IntN(80<<10)),
		PoolFiles:    m.random.IntN(3),
	}
	return m
}

// open opens the set and holds it to its promises.
func (m *model) open(fs vfs.FS) error {
	s, d, err := openSet(fs, m.options)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	m.set, m.pending = s, nil
	if st := s.Stats(); st.Damage != 0 {
		return fmt.Errorf("a crash passes for damage: %+v", st)
	}
	if !slices.IsSorted(d.order) {
		return fmt.Errorf("out of order: %v", d.order)
	}
	for n := range m.next {
		r, here := d.records[n]
		switch {
		case m.durable[n] && !here:
			return fmt.Errorf("record %d at %+v was synced and is lost", n, m.place[n])
		case m.freed[n] && here:
			return fmt.Errorf("record %d was freed and is back at %+v", n, r.Place)
		case !here:
			continue
		}
		if r.Place != m.place[n] || r.Length != int64(m.size[n]) || r.Damaged {
			return fmt.Errorf("record %d of %d octets at %+v is delivered as %+v", n, m.size[n], m.place[n], r)
		}
		if err := read(s, r.Place, n, m.size[n]); err != nil {
			return fmt.Errorf("record %d is delivered, but: %w", n, err)
		}
		m.durable[n] = true // it has been delivered: it must stay
		delete(d.records, n)
	}
	if len(d.records) > 0 {
		return fmt.Errorf("%d records that nobody wrote: %v", len(d.records), d.order)
	}
	return nil
}

// step does one thing with the set. Its errors are the disk's.
func (m *model) step() error {
	switch m.random.IntN(12) {
	case 0, 1, 2, 3, 4, 5:
		n, size := m.next, m.random.IntN(1<<(1+m.random.IntN(16)))
		b := octets(n, size)
		cut := m.random.IntN(size + 1)
		m.next++
		m.size[n] = size
		at, err := m.set.Append(kindThing, label(n), segment.NewPayload(b[:cut], b[cut:]))
		if err != nil {
			m.place[n] = at
			return err
		}
		m.place[n] = at
		m.pending = append(m.pending, n)
		return nil
	case 6, 7, 8:
		if err := m.set.Sync(); err != nil {
			return err
		}
		m.settle()
		return nil
	case 9:
		m.set.Prewrite()
		return nil
	case 10:
		if err := m.set.Roll(); err != nil {
			return err
		}
		m.settle()
		return nil
	default:
		return m.free()
	}
}

func (m *model) settle() {
	for _, n := range m.pending {
		m.durable[n] = true
	}
	m.pending = nil
}

// free gives up some segments.
func (m *model) free() error {
	var numbers []segment.Number
	active, _ := m.set.Active()
	for _, g := range m.set.Segments() {
		if g.Number != active && m.random.IntN(3) == 0 {
			numbers = append(numbers, g.Number)
		}
	}
	var gone []int
	for n := range m.next {
		if slices.Contains(numbers, m.place[n].Segment) && !m.freed[n] {
			m.durable[n] = false
			gone = append(gone, n)
		}
	}
	m.pending = slices.DeleteFunc(m.pending, func(n int) bool { return slices.Contains(gone, n) })
	if err := m.set.Free(numbers...); err != nil {
		return err
	}
	for _, n := range gone {
		m.freed[n] = true
	}
	return nil
}

// TestCrashHistories cuts the power at any operation of random histories, of
// Open too, or lets one fail. After each restart every record that was synced is delivered and
// reads well, and none whose segment was freed is back.
func TestCrashHistories(t *testing.T) {
	lives, torn, failed := 0, 0, 0
	for seed := range uint64(300) {
		disk, m := clustertest.NewDisk(seed), newModel(seed)
		for life := range 8 {
			if life < 7 && m.random.IntN(3) > 0 {
				f := clustertest.Fault{Skip: m.random.IntN(40), Crash: true}
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
			lives++
			torn += m.set.Stats().Torn
			for range m.random.IntN(60) {
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
				_ = m.set.Close()
				disk.Kill()
			case 1:
				disk.Kill()
			default:
				disk.Crash()
			}
		}
	}
	t.Logf("%d lives, %d torn, %d errors", lives, torn, failed)
	if torn == 0 || failed == 0 {
		t.Error("no crash tore anything, or no error was met")
	}
}
