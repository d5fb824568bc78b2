//go:build controls

package controls

import (
	"fmt"
	"slices"
	"strings"
)

// A Set is the switches that are on. The zero Set is the product.
type Set struct{ on Switch }

// Of returns a Set with these switches on.
func Of(on ...Switch) Set {
	var s Set
	for _, one := range on {
		s.on |= one
	}
	return s
}

// Has reports whether a switch is on.
func (s Set) Has(one Switch) bool { return s.on&one != 0 }

// Names are what Parse calls the switches, as package trial does.
var Names = map[string]Switch{
	"fsync removed":              FsyncRemoved,
	"250 before commit":          EarlyReply,
	"body deleted before commit": EarlyDelete,
	"append rule off":            RuleOff,
	"heartbeat fast path on":     HeartbeatFastPath,
	"451 on an unknown outcome":  UnknownRefused,
	"lease check removed":        LeaseUnchecked,
	"checksum check removed":     ChecksumUnchecked,
	"stray CR passed":            StrayCRPassed,
	"wall-clock expiry":          WallClockExpiry,
	"bounce on NXDOMAIN":         UnknownNameBounced,

	"floor off":               FloorOff,
	"live floor announced":    LiveFloor,
	"nonvoters spared":        NonvotersSpared,
	"latch off":               LatchOff,
	"start-up check off":      StartCheckOff,
	"pipelined":               Pipelined,
	"written counts":          WrittenCounts,
	"start-up check cuts all": CutsAll,
}

// Parse reads the names of switches, with commas between them.
func Parse(text string) (Set, error) {
	var s Set
	for name := range strings.SplitSeq(text, ",") {
		one, ok := Names[strings.TrimSpace(name)]
		if !ok {
			var all []string
			for known := range Names {
				all = append(all, known)
			}
			slices.Sort(all)
			return Set{}, fmt.Errorf("no rule %q can be broken; these can: %s", name, strings.Join(all, ", "))
		}
		s.on |= one
	}
	return s, nil
}
