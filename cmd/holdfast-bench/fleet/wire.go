package fleet

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
)

// A WireMeter counts the octets that the nodes sent each other over their
// cluster ports: what they gave to TCP, TLS records and Raft's heartbeats
// included, IP and TCP headers and anything sent twice not. Gossip has a port of
// its own and is not counted.
//
// The kernel counts for each socket which octets the other end has
// acknowledged. Both ends of every connection are on this host, so that adding up
// all sockets counts each octet once.
type WireMeter struct {
	ports map[string]bool
	last  map[string]uint64 // by connection: as of the last Read
	total uint64
}

// NewWireMeter returns a meter that counts from now on. It needs ss, of iproute2.
func (f *Fleet) NewWireMeter(ctx context.Context) (*WireMeter, error) {
	m := &WireMeter{ports: make(map[string]bool)}
	for _, n := range f.Nodes {
		_, port, err := net.SplitHostPort(n.Cluster)
		if err != nil {
			return nil, fmt.Errorf("cluster address of %s: %w", n.Name, err)
		}
		m.ports[port] = true
	}
	if _, err := m.Read(ctx); err != nil {
		return nil, err
	}
	m.total = 0
	return m, nil
}

// Read returns the octets since the meter was made. A connection that has ended
// since the last Read took its count with it, which is an error.
func (m *WireMeter) Read(ctx context.Context) (uint64, error) {
	out, err := exec.CommandContext(ctx, "ss", "--tcp", "--numeric", "--info", "--no-header", "--oneline", "state", "established").Output()
	if err != nil {
		return 0, fmt.Errorf("ss (apt-get install iproute2): %w", err)
	}
	now, err := acknowledged(string(out), m.ports)
	if err != nil {
		return 0, err
	}
	return m.total, m.advance(now)
}

// advance takes in a new reading.
func (m *WireMeter) advance(now map[string]uint64) error {
	for connection, before := range m.last {
		after, open := now[connection]
		if !open || after < before {
			return fmt.Errorf("the connection %s between nodes ended while it was counted", connection)
		}
		m.total += after - before
	}
	for connection, octets := range now {
		if _, known := m.last[connection]; !known {
			m.total += octets
		}
	}
	m.last = now
	return nil
}

// acknowledged reads ss's lines: queue lengths, own address, peer's, and then
// words, among them bytes_acked:N where anything was sent.
func acknowledged(lines string, ports map[string]bool) (map[string]uint64, error) {
	octets := make(map[string]uint64)
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) < 4 {
			continue
		}
		if !ports[portOf(words[2])] && !ports[portOf(words[3])] {
			continue
		}
		count := uint64(0)
		for _, word := range words[4:] {
			if digits, ok := strings.CutPrefix(word, "bytes_acked:"); ok {
				var err error
				if count, err = strconv.ParseUint(digits, 10, 64); err != nil {
					return nil, fmt.Errorf("ss says %q: %w", word, err)
				}
			}
		}
		octets[words[2]+" to "+words[3]] = count
	}
	return octets, nil
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
