package spool_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// controlPoints are those of the first eight workloads.
const controlPoints = 200

// TestControlFsyncRemoved: a body whose Put returned nil is there after a power
// failure.
func TestControlFsyncRemoved(t *testing.T) {
	trial.Run(t, controls.FsyncRemoved, func(t *testing.T, on controls.Set) error {
		e := explorer(nil)
		e.Ordered = nil // by what is lost alone
		if on.Has(controls.FsyncRemoved) {
			e.Wrap = clustertest.Lie{Files: true, Dirs: true}.Wrap
		}
		at, _, err := e.Explore(t, controlPoints)
		if err != nil {
			return fmt.Errorf("point %v: %w", at, err)
		}
		return nil
	})
}

// TestControlChecksumUnchecked: whoever reads a body in which a bit has flipped
// gets an error, and not another body.
func TestControlChecksumUnchecked(t *testing.T) {
	trial.Run(t, controls.ChecksumUnchecked, func(t *testing.T, on controls.Set) error {
		disk := clustertest.NewDisk(1)
		s := open(t, disk.Mount(), spool.Options{SegmentBytes: 24 * mail.KiB, Random: rand.NewChaCha8([32]byte{1}), Controls: on})
		put(t, s, 0, 1000)
		ref := put(t, s, 1, victimBytes)
		if !disk.Damage(dir+"/00000001.seg", victimAt+recordHead+1500, 1) {
			t.Fatal("nothing there to damage")
		}
		r, err := s.Open(ref)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadAll(r); !errors.Is(err, spool.ErrCorrupt) {
			return fmt.Errorf("a damaged body reads as a good one (%v)", err)
		}
		return nil
	})
}
