package spool_test

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// FuzzOpen puts any octets behind a good segment header, or any octets at all in
// place of a file. The spool must open, hold nothing that does not verify, take
// new bodies, and open again without finding more that is wrong.
func FuzzOpen(f *testing.F) {
	disk := clustertest.NewDisk(1)
	s, err := spool.Open(disk.Mount(), dir, spool.Options{Random: zeros{}})
	if err != nil {
		f.Fatal(err)
	}
	for n, size := range []int{0, 5, 600} {
		ref, content := body(n, size)
		if err := s.Put(ref, content); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Delete(s.Doom([]mail.QueueID{queueID(1)})); err != nil {
		f.Fatal(err)
	}
	_ = s.Close()
	file, err := disk.ReadFile(dir + "/00000001.seg")
	if err != nil {
		f.Fatal(err)
	}
	head := file[:headBytes]
	f.Add(file[headBytes:], true, true)
	f.Add(file[headBytes:len(file)-3], true, true)
	f.Add(file, false, false)
	f.Add(file[:100], false, true)
	f.Add([]byte{}, false, true)
	f.Fuzz(func(t *testing.T, p []byte, headed, last bool) {
		disk := clustertest.NewDisk(1)
		m := disk.Mount()
		if err := m.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
		content := map[string][]byte{"00000001.seg": p}
		if headed {
			content["00000001.seg"] = append(append([]byte(nil), head...), p...)
		}
		if !last {
			content["00000002.seg"] = nil
		}
		for name, b := range content {
			w, err := m.Create(dir + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for life := range 3 {
			s, err := spool.Open(disk.Mount(), dir, spool.Options{})
			if err != nil {
				return // a version of the future
			}
			for _, b := range s.Bodies() {
				if err := s.Verify(b.Ref); err != nil && !errors.Is(err, spool.ErrCorrupt) {
					t.Fatalf("verify: %v", err)
				}
			}
			if st := s.Stats(); life > 0 && st.Torn > 0 {
				t.Fatalf("torn again: %+v", st)
			}
			put(t, s, 100+life, 300)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// zeros is a source of marks that are all alike, so that the fuzzer's records
// are real ones.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 7
	}
	return len(p), nil
}
