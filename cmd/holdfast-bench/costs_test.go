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
		Log: []logCost{{"segments", of(1000), 4000}, {"raft-boltdb", load.Result{Accepted: 5, Octets: 500, Elapsed: time.Second}, 3500}},
		Disk: []diskCost{
			{Size: load.Size64K, Segments: "recycled", Load: of(1000), Written: 3100},
			{Size: load.Size64K, Segments: "growing", Load: of(2000), Written: 6400},
			{Size: load.Size4K, Segments: "recycled", Load: of(1000), Written: 5500},
			{Size: load.Size4K, Segments: "growing", Load: of(1000), Written: 5000},
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
		patterns    []string
		least, most int64
	}{{[]string{poolOfBodies}, 0, 10}, {[]string{poolOfLog}, 0, 7}, {[]string{poolOfBodies, poolOfLog}, 4, 15}} {
		if least, most := s.pools(c.patterns...); least != c.least || most != c.most {
			t.Errorf("%v: %d to %d, want %d to %d", c.patterns, least, most, c.least, c.most)
		}
	}
}
