package cluster

import "testing"

// TestTooManyLow: mail is taken while a majority of the voters has room for it.
func TestTooManyLow(t *testing.T) {
	for voters, most := range []int{0, 0, 0, 1, 1, 2, 2, 3} {
		for low := range voters + 1 {
			if got, want := tooManyLow(low, voters), low > most; got != want {
				t.Errorf("%d of %d voters low: %v, want %v", low, voters, got, want)
			}
		}
	}
}
