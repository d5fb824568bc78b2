package fabric

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	// mtu is the largest packet. Large ones cost this process less.
	mtu = 9000
	// delayedMax bounds the packets that wait at a time; more are lost.
	delayedMax = 20_000
	// strangersMax bounds the addresses remembered that no host has.
	strangersMax = 100
)

// A Way is what becomes of packets in one direction between two addresses. The
// zero value passes them on.
type Way struct {
	Cut bool
	// Loss is the share of packets that are lost, from 0 to 1; Twice the share
	// of those that come twice.
	Loss, Twice float64
	// Delay is added to each packet, and up to Jitter besides, so that packets
	// overtake one another.
	Delay, Jitter time.Duration
	// UDP and TCP limit a way to one protocol, the other passes.
	UDP, TCP bool
}

type direction struct{ from, to netip.Addr }

// A Fabric is a network. It is safe for concurrent use.
type Fabric struct {
	mu        sync.Mutex
	rand      *rand.Rand
	ways      map[direction]Way
	outlets   map[netip.Addr]func(packet []byte)
	strangers map[string]int
	struck    map[direction]int64
	delayed   int
	counts    Counts
}

// Counts counts packets.
type Counts struct{ Passed, Cut, Lost, Delayed int64 }

// New returns a network without hosts.
func New(seed uint64) *Fabric {
	return &Fabric{
		rand:      rand.New(rand.NewPCG(seed, 0x666162726963)),
		ways:      map[direction]Way{},
		outlets:   map[netip.Addr]func([]byte){},
		strangers: map[string]int{},
		struck:    map[direction]int64{},
	}
}

// Set changes one direction between two addresses.
func (f *Fabric) Set(from, to netip.Addr, w Way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w == (Way{}) {
		delete(f.ways, direction{from, to})
		return
	}
	f.ways[direction{from, to}] = w
}

// Heal makes every direction whole.
func (f *Fabric) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.ways)
}

// Counts returns the counts so far.
func (f *Fabric) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// Cut reports whether a direction is cut.
func (f *Fabric) Cut(from, to netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ways[direction{from, to}].Cut
}

// Struck counts the packets in one direction that were cut, lost, delayed or doubled.
func (f *Fabric) Struck(from, to netip.Addr) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck[direction{from, to}]
}

// Strangers tells how often a connection was begun to which address and port
// that no host of the fabric has.
func (f *Fabric) Strangers() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]int, len(f.strangers))
	for address, n := range f.strangers {
		all[address] = n
	}
	return all
}

func (f *Fabric) attach(address netip.Addr, outlet func([]byte)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outlets[address] = outlet
}

// carry takes a packet that a host sent. It keeps no reference to it.
func (f *Fabric) carry(packet []byte) {
	h, ok := parse(packet)
	if !ok {
		return // not IPv4: nobody here speaks anything else
	}
	f.mu.Lock()
	outlet := f.outlets[h.to]
	if outlet == nil {
		if h.begins && len(f.strangers) < strangersMax {
			f.strangers[netip.AddrPortFrom(h.to, h.port).String()]++
		}
		f.mu.Unlock()
		return
	}
	delays := f.fate(h)
	if len(delays) == 1 && delays[0] == 0 {
		f.mu.Unlock()
		outlet(packet)
		return
	}
	for _, d := range delays {
		if f.delayed >= delayedMax {
			f.counts.Lost++
			continue
		}
		f.delayed++
		f.counts.Delayed++
		later := append([]byte(nil), packet...)
		time.AfterFunc(d, func() {
			f.mu.Lock()
			f.delayed--
			f.mu.Unlock()
			outlet(later)
		})
	}
	f.mu.Unlock()
}

// fate says when the packet arrives, how often. It needs mu.
func (f *Fabric) fate(h header) []time.Duration {
	w := f.ways[direction{h.from, h.to}]
	if w.UDP && h.protocol != protocolUDP || w.TCP && h.protocol != protocolTCP {
		w = Way{}
	}
	switch {
	case w.Cut:
		f.counts.Cut++
		f.struck[direction{h.from, h.to}]++
		return nil
	case w.Loss > 0 && f.rand.Float64() < w.Loss:
		f.counts.Lost++
		f.struck[direction{h.from, h.to}]++
		return nil
	case w.Twice > 0 || w.Delay > 0 || w.Jitter > 0:
		f.struck[direction{h.from, h.to}]++
	}
	f.counts.Passed++
	delays := []time.Duration{f.delay(w)}
	if w.Twice > 0 && f.rand.Float64() < w.Twice {
		delays = append(delays, f.delay(w))
	}
	return delays
}

func (f *Fabric) delay(w Way) time.Duration {
	d := w.Delay
	if w.Jitter > 0 {
		d += time.Duration(f.rand.Int64N(int64(w.Jitter)))
	}
	return d
}

const (
	protocolTCP = 6
	protocolUDP = 17
)

// A header is what the fabric wants to know of a packet.
type header struct {
	from, to netip.Addr
	protocol byte
	port     uint16 // it goes to, if it has one
	begins   bool   // a connection, or is a datagram
}

// parse reads the headers of IPv4 (RFC 791), and of TCP (RFC 9293) or UDP (RFC
// 768) in it.
func parse(b []byte) (header, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return header{}, false
	}
	h := header{protocol: b[9], from: netip.AddrFrom4([4]byte(b[12:16])), to: netip.AddrFrom4([4]byte(b[16:20]))}
	inner := int(b[0]&15) * 4
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return h, true // a later fragment
	}
	switch {
	case h.protocol == protocolTCP && len(b) >= inner+14:
		h.port = binary.BigEndian.Uint16(b[inner+2:])
		const syn, ack = 2, 16
		h.begins = b[inner+13]&(syn|ack) == syn
	case h.protocol == protocolUDP && len(b) >= inner+8:
		h.port = binary.BigEndian.Uint16(b[inner+2:])
		h.begins = true
	}
	return h, true
}
