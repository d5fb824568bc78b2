package fabric

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var (
	one   = netip.MustParseAddr("10.77.0.1")
	two   = netip.MustParseAddr("10.77.0.2")
	three = netip.MustParseAddr("10.77.0.3")
)

// packet makes the headers of a packet, as far as the fabric reads them.
func packet(from, to netip.Addr, protocol byte, port uint16, flags byte) []byte {
	b := make([]byte, 40)
	b[0], b[9] = 0x45, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[22:], port)
	b[33] = flags
	return b
}

func arrivals(f *Fabric, address netip.Addr) *int {
	n := new(int)
	f.attach(address, func([]byte) { *n++ })
	return n
}

// A cut has a direction, and may concern one protocol alone.
func TestCut(t *testing.T) {
	f := New(1)
	atOne, atTwo := arrivals(f, one), arrivals(f, two)
	f.Set(one, two, Way{Cut: true})
	f.carry(packet(one, two, protocolTCP, 25, 0))
	f.carry(packet(two, one, protocolTCP, 25, 0))
	if *atOne != 1 || *atTwo != 0 {
		t.Errorf("%d and %d arrived, want 1 and 0", *atOne, *atTwo)
	}
	f.Set(one, two, Way{Cut: true, UDP: true})
	f.carry(packet(one, two, protocolTCP, 25, 0))
	f.carry(packet(one, two, protocolUDP, 25, 0))
	if *atTwo != 1 {
		t.Errorf("%d arrived, want what is not UDP", *atTwo)
	}
	f.Heal()
	f.carry(packet(one, two, protocolUDP, 25, 0))
	if *atTwo != 2 {
		t.Errorf("%d arrived on a way that is whole again", *atTwo)
	}
	if c := f.Counts(); c.Passed != 3 || c.Cut != 2 {
		t.Errorf("counted %+v", c)
	}
	if struck, other := f.Struck(one, two), f.Struck(two, one); struck != 2 || other != 0 {
		t.Errorf("%d and %d were struck, want 2 and none", struck, other)
	}
}

func TestLossAndCopies(t *testing.T) {
	f := New(1)
	atTwo := arrivals(f, two)
	f.Set(one, two, Way{Loss: 0.3})
	for range 10_000 {
		f.carry(packet(one, two, protocolTCP, 25, 0))
	}
	if *atTwo < 6_700 || *atTwo > 7_300 {
		t.Errorf("%d of 10000 arrived where 30 %% are lost", *atTwo)
	}
	f.Set(one, two, Way{Twice: 1, Delay: time.Hour})
	f.carry(packet(one, two, protocolTCP, 25, 0))
	if c := f.Counts(); c.Delayed != 2 {
		t.Errorf("counted %+v, want both copies to wait", c)
	}
}

// Only what begins something is counted: an answer to a host that has gone says
// nothing about who talked to whom.
func TestStrangers(t *testing.T) {
	f := New(1)
	const syn, ack = 2, 16
	f.carry(packet(one, three, protocolTCP, 25, syn))
	f.carry(packet(one, three, protocolTCP, 25, syn|ack))
	f.carry(packet(one, three, protocolTCP, 25, ack))
	f.carry(packet(one, three, protocolUDP, 53, 0))
	if got := f.Strangers(); len(got) != 2 || got["10.77.0.3:25"] != 1 || got["10.77.0.3:53"] != 1 {
		t.Errorf("strangers %v", got)
	}
	f.carry([]byte{0x60})
	f.carry(nil)
}
