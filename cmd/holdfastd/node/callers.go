package node

import (
	"fmt"
	"slices"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
)

// callerPinsMax is how many keys the callers of one domain have at most.
const callerPinsMax = 16

// CallerPins reads the keys of callers.
func (a adminCluster) CallerPins(pins []string) ([][32]byte, error) {
	if len(pins) > callerPinsMax {
		return nil, fmt.Errorf("%d keys, and at most %d are allowed", len(pins), callerPinsMax)
	}
	var all [][32]byte
	for _, text := range pins {
		pin, err := tlspolicy.ParsePin(text)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, [32]byte(pin)) {
			all = append(all, pin)
		}
	}
	return all, nil
}
