package fleet

import (
	"strings"
	"testing"
)

// What ss prints: a connection between nodes seen from both ends, one on which
// nothing was sent yet, and a stranger's.
const ssLines = `0      0      127.0.0.1:60296 127.0.0.1:30544 bbr wscale:10,10 rto:208 rtt:4.191/8.107 bytes_sent:2967 bytes_retrans:12 bytes_acked:2955 bytes_received:274951 segs_out:32 send 1345786686bps
0      0      127.0.0.1:30544 127.0.0.1:60296 cubic bytes_sent:291357 bytes_retrans:16406 bytes_acked:274951 bytes_received:2955
0      0      127.0.0.1:30544 127.0.0.1:60300 cubic wscale:10,10
0      0      10.0.0.1:443 10.0.0.2:5000 cubic bytes_acked:999
`

func TestAcknowledged(t *testing.T) {
	got, err := acknowledged(ssLines, map[string]bool{"30544": true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{
		"127.0.0.1:60296 to 127.0.0.1:30544": 2955,
		"127.0.0.1:30544 to 127.0.0.1:60296": 274951,
		"127.0.0.1:30544 to 127.0.0.1:60300": 0,
	}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	for connection, octets := range want {
		if got[connection] != octets {
			t.Errorf("%s: %d, want %d", connection, got[connection], octets)
		}
	}
	if _, err := acknowledged("0 0 a:1 b:30544 bytes_acked:many", map[string]bool{"30544": true}); err == nil {
		t.Error("a count that is no number passes")
	}
}

func TestWireMeter(t *testing.T) {
	m := &WireMeter{last: map[string]uint64{"a": 100, "b": 7}}
	for _, step := range []struct {
		now  map[string]uint64
		want uint64
	}{
		{map[string]uint64{"a": 150, "b": 7}, 50},
		{map[string]uint64{"a": 150, "b": 8, "c": 1000}, 1051}, // a new one counts from its beginning
		{map[string]uint64{"a": 150, "b": 8, "c": 1000}, 1051},
	} {
		if err := m.advance(step.now); err != nil {
			t.Fatal(err)
		}
		if m.total != step.want {
			t.Errorf("%d, want %d", m.total, step.want)
		}
	}
	for name, now := range map[string]map[string]uint64{
		"gone":       {"a": 150, "b": 8},
		"a new life": {"a": 150, "b": 8, "c": 3},
	} {
		if err := (&WireMeter{last: m.last}).advance(now); err == nil || !strings.Contains(err.Error(), "connection c ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
