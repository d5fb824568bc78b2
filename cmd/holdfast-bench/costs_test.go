package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// The last line has the largest of each kind, per octet of accepted body.
func TestPrintCosts(t *testing.T) {
	of := func(octets int64) load.Result { return load.Result{Accepted: 10, Octets: octets, Elapsed: time.Second} }
	c := costs{
		Log: []logCost{
			{"segments", window{Octets: 1000, Device: 4000}, of(1000)},
			{"raft-boltdb", window{Octets: 500, Device: 3500}, load.Result{Accepted: 5, Elapsed: time.Second}},
		},
		Disk: []diskCost{
			{Size: load.Size64K, Segments: "recycled", Window: window{Octets: 1000, Device: 3100}, Load: of(9)},
			{Size: load.Size64K, Segments: "growing", Window: window{Octets: 2000, Device: 6400}, Load: of(9)},
			{Size: load.Size4K, Segments: "recycled", Window: window{Octets: 1000, Device: 5500}, Load: of(9)},
			{Size: load.Size4K, Segments: "growing", Window: window{Octets: 1000, Device: 5000}, Load: of(9)},
		},
		Wire: []wireCost{
			{load.Size64K, "leader", of(1000), 2050}, {load.Size64K, "follower", of(100), 207}, {load.Mix, "leader", of(1000), 2060},
		},
		Memory: []memoryCost{{load.Mix, of(1), 112 << 20}, {load.Size25M, of(1), 700 << 20}},
	}
	var out bytes.Buffer
	(&app{out: &out}).printCosts(c)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if got := lines[len(lines)-1]; got != "disk_64k=3.20 disk_4k=5.50 wire=2.07 rss_mib=112" {
		t.Errorf("last line %q", got)
	}
	if got := lines[len(lines)-2]; got != "rss_25m=700" {
		t.Errorf("the line before it %q", got)
	}
	if got := lines[1]; !strings.Contains(got, "7.00 octets written") || !strings.Contains(got, "0.50 times") {
		t.Errorf("%q", got)
	}
}

func TestOnlyDeferred(t *testing.T) {
	for _, c := range []struct {
		accepted int
		failed   map[int]int
		good     bool
	}{
		{5, nil, true}, {5, map[int]int{452: 3}, true}, {0, map[int]int{452: 3}, false},
		{5, map[int]int{452: 3, 451: 1}, false}, {5, map[int]int{0: 1}, false}, {0, nil, false},
	} {
		if err := onlyDeferred(load.Result{Accepted: c.accepted, Failed: c.failed}); (err == nil) != c.good {
			t.Errorf("%d accepted, failed %v: %v", c.accepted, c.failed, err)
		}
	}
}

func TestPools(t *testing.T) {
	s := &scene{fleet: new(fleet.Fleet)}
	for _, files := range []map[string]int{
		{"spool/00000001.free": 10, "spool/00000002.seg": 99, "raft/log/00000001.free": 5},
		{"spool/00000001.free": 1, "spool/00000002.free": 3},
		{"raft/log/00000001.free": 7},
	} {
		n := &fleet.Node{Dir: t.TempDir()}
		for name, size := range files {
			path := filepath.Join(n.Dir, "data", name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s.fleet.Nodes = append(s.fleet.Nodes, n)
	}
	for _, c := range []struct {
		patterns         []string
		least, most, all int64
	}{{[]string{poolOfBodies}, 0, 10, 14}, {[]string{poolOfLog}, 0, 7, 12}, {[]string{poolOfBodies, poolOfLog}, 4, 15, 26}} {
		if least, most, all := s.pools(c.patterns...); least != c.least || most != c.most || all != c.all {
			t.Errorf("%v: %d to %d, %d in all, want %d to %d, %d", c.patterns, least, most, all, c.least, c.most, c.all)
		}
	}
}
