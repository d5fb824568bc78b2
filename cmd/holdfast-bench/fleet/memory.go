package fleet

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// sampleEvery is how often a running process is measured. Before a kill by us it
// is measured once more; a process that ends by itself may have grown since its
// last sample.
const sampleEvery = 200 * time.Millisecond

// PeakRSS returns the largest resident set of any of the node's processes so far,
// in octets, as Linux counts it. On other systems it is zero.
func (n *Node) PeakRSS() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		n.process.measure()
		n.peakRSS = max(n.peakRSS, n.process.peakRSS)
	}
	return n.peakRSS
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

// measure reads the process's peak. Where it cannot be read, since the process is
// ending, the last one stays.
func (p *process) measure() {
	if v, ok := field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmHWM:"); ok {
		p.peakRSS = v << 10
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
