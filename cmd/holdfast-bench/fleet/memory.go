package fleet

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// sampleEvery is how often a running process is measured. What it wrote is
// counted exactly up to a kill by us; a process that ends by itself may have
// written more since its last sample.
const sampleEvery = 200 * time.Millisecond

// Usage is what a node's processes took, as Linux counts it. On other systems
// it is zero.
type Usage struct {
	// Written is the octets sent to the storage layer, by all processes of
	// the node together.
	Written int64 `json:"written_bytes"`
	// PeakRSS is the largest resident set of any of them, in octets.
	PeakRSS int64 `json:"peak_rss_bytes"`
}

// join adds the usage of a process that has ended.
func (u *Usage) join(o Usage) {
	u.Written += o.Written
	u.PeakRSS = max(u.PeakRSS, o.PeakRSS)
}

// Usage returns what the node has taken so far.
func (n *Node) Usage() Usage {
	n.mu.Lock()
	defer n.mu.Unlock()
	total := n.ended
	if n.process != nil {
		n.process.measure()
		total.join(n.process.usage)
	}
	return total
}

func (n *Node) sample(p *process) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.sampler:
			return
		case <-tick.C:
			n.mu.Lock()
			p.measure()
			n.mu.Unlock()
		}
	}
}

// measure reads the process's counters. Values that cannot be read, since the
// process is ending, leave the last ones.
func (p *process) measure() {
	pid := p.cmd.Process.Pid
	if v, ok := field(fmt.Sprintf("/proc/%d/io", pid), "write_bytes:"); ok {
		p.usage.Written = v
	}
	if v, ok := field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:"); ok {
		p.usage.PeakRSS = v << 10
	}
}

func field(file, name string) (int64, bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) >= 2 && words[0] == name {
			v, err := strconv.ParseInt(words[1], 10, 64)
			return v, err == nil
		}
	}
	return 0, false
}
