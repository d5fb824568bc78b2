package fleet

import "testing"

func TestSectorsWritten(t *testing.T) {
	const stats = ` 254       0 vda 265247 25746 9572786 126288 891050 168622 57470984 364219 0 199232 613772 69763 61 36315152 22157 230902 101107
 254       1 vda1 1 2 3 4 5 6 77 8 9 10 11
   7       0 loop0 1 2
`
	for _, c := range []struct {
		major, minor uint32
		want         int64
		ok           bool
	}{{254, 0, 57470984, true}, {254, 1, 77, true}, {7, 0, 0, false}, {8, 0, 0, false}} {
		if got, ok := sectorsWritten(stats, c.major, c.minor); got != c.want || ok != c.ok {
			t.Errorf("%d:%d: %d, %v", c.major, c.minor, got, ok)
		}
	}
}
