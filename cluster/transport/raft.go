package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Raft is the stream layer for Raft: a listener, and Dial by server id.
type Raft struct{ port *Port }

// Accept returns the next connection of a server that knows who we are.
func (r *Raft) Accept() (net.Conn, error) { return r.port.raft.Accept() }

// Close refuses further Raft connections and closes those open, accepted and
// dialled: hashicorp/raft leaves both kinds to their fate. Dial fails from then
// on.
func (r *Raft) Close() error { return r.port.raft.Close() }

// Addr returns the address that the port listens on.
func (r *Raft) Addr() net.Addr { return r.port.Addr() }

// Dial opens a Raft connection to the server with exactly this id. It fails
// with ErrWrongServer where the node lives on under another incarnation.
func (r *Raft) Dial(ctx context.Context, id ServerID, address string) (net.Conn, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	select {
	case <-r.port.raft.done:
		return nil, ErrClosed
	default:
	}
	c, err := r.port.dialTLS(ctx, id.Name(), address, protocolRaft)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err = r.port.sayHello(c, id)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("greet %s at %s: %w", id, address, err), c.Close())
	}
	c.server = id
	r.port.handOut(c)
	select {
	case <-r.port.raft.done: // closeAll may have looked before handOut.
		return nil, errors.Join(ErrClosed, c.Close())
	default:
		return c, nil
	}
}

// The hello of a Raft connection, whose version follows from the protocol that
// the handshake agreed on. The dialling side sends
//
//	byte  0      version (2)
//	bytes 1-2    length of what follows, big endian, at most helloBytesMax
//	then three strings, each behind one byte of length:
//	             cluster, sender's server id, wanted server id
//	8 bytes      how often the sender has started, big endian
//
// and waits for the answer of ten bytes: version, helloAnswer, and how often the
// answering side has started. Only then does either side hand the connection to
// Raft. TLS has proved the sender's name already; the hello adds which life of
// the node speaks, and to which, and that neither speaks from an old copy of its
// data directory.
//
// In version 1 neither side says how often it has started: the hello ends with
// the strings and the answer is two bytes.
const (
	helloVersion1 = 1
	helloVersion  = 2
	startBytes    = 8
	helloBytesMax = 3 + nameBytesMax + 2*(nameBytesMax+1+incarnationBytesMax) + startBytes
)

type helloAnswer byte

const (
	helloWelcome helloAnswer = iota + 1
	helloWrongCluster
	helloWrongServer
	helloWrongName
	_ // not used: answers keep their numbers
	helloOutdated
	helloNotYet
)

var (
	// ErrWrongServer: the node that was reached lives under another server id.
	ErrWrongServer = errors.New("wrong server id")
	// ErrOutdated: the data directory of a server is an older copy of itself.
	// Where Dial returns it without ErrPeer, it is ours.
	ErrOutdated = errors.New("data directory is older than what the cluster knows of it")
	// ErrPeer: what is wrong is wrong with the server that was dialled.
	ErrPeer = errors.New("the server dialled")
	// ErrNotYet: the other side has not read yet what it knows of others.
	ErrNotYet = errors.New("server is starting")

	errHello = errors.New("malformed hello")
)

func (a helloAnswer) err() error {
	switch a {
	case helloWelcome:
		return nil
	case helloWrongCluster:
		return ErrWrongCluster
	case helloWrongServer:
		return ErrWrongServer
	case helloWrongName:
		return ErrWrongName
	case helloOutdated:
		return ErrOutdated
	case helloNotYet:
		return ErrNotYet
	}
	return fmt.Errorf("%w: answer %d", errHello, a)
}

type hello struct {
	version  byte
	cluster  string
	from, to ServerID
	start    uint64 // of the sender; not in version 1
}

func (h hello) encode() []byte {
	var payload []byte
	for _, s := range []string{h.cluster, string(h.from), string(h.to)} {
		payload = append(payload, byte(len(s)))
		payload = append(payload, s...)
	}
	if h.version > helloVersion1 {
		payload = binary.BigEndian.AppendUint64(payload, h.start)
	}
	b := []byte{h.version}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// readHello reads exactly one hello: not an octet of what follows it.
func readHello(r io.Reader, version byte) (hello, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	n := binary.BigEndian.Uint16(head[1:])
	if head[0] != version || n > helloBytesMax {
		return hello{}, fmt.Errorf("%w: version %d, %d bytes", errHello, head[0], n)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	var fields [3]string
	for i := range fields {
		if len(payload) == 0 || len(payload) <= int(payload[0]) {
			return hello{}, fmt.Errorf("%w: field %d is cut short", errHello, i)
		}
		fields[i] = string(payload[1 : 1+payload[0]])
		payload = payload[1+payload[0]:]
	}
	h := hello{version: version, cluster: fields[0], from: ServerID(fields[1]), to: ServerID(fields[2])}
	if version > helloVersion1 && len(payload) >= startBytes {
		h.start, payload = binary.BigEndian.Uint64(payload), payload[startBytes:]
	} else if version > helloVersion1 {
		return hello{}, fmt.Errorf("%w: no number of the start", errHello)
	}
	if len(payload) > 0 {
		return hello{}, fmt.Errorf("%w: %d bytes too many", errHello, len(payload))
	}
	return h, nil
}

// answerHello reads the dialling side's hello and answers it. An error other
// than one that the answer names gets no answer.
func (p *Port) answerHello(c *conn) error {
	h, err := readHello(c, c.hello)
	if err != nil {
		return err
	}
	answer := p.judgeHello(h, c.peer)
	frame := []byte{h.version, byte(answer)}
	if h.version > helloVersion1 {
		frame = binary.BigEndian.AppendUint64(frame, p.start)
	}
	_, err = c.Write(frame)
	if reason := answer.err(); reason != nil {
		return fmt.Errorf("hello of %q to %q from node %q: %w", h.from, h.to, c.peer, reason)
	}
	if err != nil {
		return fmt.Errorf("answer hello: %w", err)
	}
	c.server = h.from
	return nil
}

// judgeHello decides on a hello from the node with the given name.
func (p *Port) judgeHello(h hello, name string) helloAnswer {
	switch {
	case h.cluster != p.id.cluster:
		return helloWrongCluster
	case h.from.Check() != nil || h.from.Name() != name:
		return helloWrongName
	case h.to != p.serverID:
		return helloWrongServer
	}
	switch known, ok := p.known(h.from); {
	case !ok:
		return helloNotYet
	case h.version > helloVersion1 && h.start < known:
		return helloOutdated
	}
	return helloWelcome
}

// sayHello introduces us to the server to, and waits for its answer.
func (p *Port) sayHello(c *conn, to ServerID) error {
	known, ok := p.known(to)
	if !ok {
		return fmt.Errorf("this %w", ErrNotYet)
	}
	h := hello{version: c.hello, cluster: p.id.cluster, from: p.serverID, to: to, start: p.start}
	if _, err := c.Write(h.encode()); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	answer := make([]byte, 2, 2+startBytes)
	if h.version > helloVersion1 {
		answer = answer[:2+startBytes]
	}
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("read the answer to hello: %w", err)
	}
	if answer[0] != h.version {
		return fmt.Errorf("%w: answer of version %d", errHello, answer[0])
	}
	if err := helloAnswer(answer[1]).err(); err != nil {
		return err
	}
	if h.version > helloVersion1 {
		if start := binary.BigEndian.Uint64(answer[2:]); start < known {
			return fmt.Errorf("%w: %w: it has started %d times, and the cluster knows of %d", ErrPeer, ErrOutdated, start, known)
		}
	}
	return nil
}
