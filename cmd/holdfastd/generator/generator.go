package generator

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Queue takes messages, as smtpd's does.
type Queue interface {
	Submit(ctx context.Context, e mail.Envelope, body *mail.Body) (mail.QueueID, error)
	// Settle notes that the answer of Submit has been read.
	Settle(id mail.QueueID)
}

// An Order asks for payloads: each publisher submits one, waits until it is
// committed, and submits the next.
type Order struct {
	Size       int           `json:"size"` // octets of a payload
	Publishers int           `json:"publishers"`
	Duration   time.Duration `json:"duration_ns"`
	OctetsMax  int64         `json:"octets_max"` // of all payloads
	Recipient  string        `json:"recipient"`
}

// A Result is what came of an Order.
type Result struct {
	Accepted     int           `json:"accepted"`
	Octets       int64         `json:"octets"`
	Elapsed      time.Duration `json:"elapsed_ns"`
	LatenciesUS  []uint32      `json:"latencies_us"` // of those accepted
	Failed       int           `json:"failed"`       // each ends its publisher
	FirstFailure string        `json:"first_failure,omitempty"`
}

const (
	orderPatience  = 10 * time.Second // for an order to arrive, and for a result to be read
	submitPatience = 60 * time.Second // for one payload
	stampBytes     = 16               // at the head of a payload; they differ in each
	payloadMax     = 64 << 20
	publishersMax  = 1000
)

func (o Order) flaw() error {
	switch {
	case o.Size < stampBytes || o.Size > payloadMax:
		return fmt.Errorf("payloads of %d octets, want %d to %d", o.Size, stampBytes, payloadMax)
	case o.Publishers < 0 || o.Publishers > publishersMax:
		return fmt.Errorf("%d publishers, want 0 to %d", o.Publishers, publishersMax)
	case o.Duration <= 0:
		return fmt.Errorf("duration %v", o.Duration)
	}
	return nil
}

// Serve carries out the orders that come in over l, one per connection and one
// after the other, until ctx ends. An order and its result are a line of JSON
// each.
func Serve(ctx context.Context, l net.Listener, q Queue, m mail.Memory, log *slog.Logger) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if err := serve(ctx, conn, q, m); err != nil {
			log.Warn("order for payloads not carried out", "cause", err)
		}
	}
}

func serve(ctx context.Context, conn net.Conn, q Queue, m mail.Memory) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(orderPatience)); err != nil {
		return err
	}
	var o Order
	if err := json.NewDecoder(conn).Decode(&o); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	r, err := Generate(ctx, q, m, o)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(orderPatience)); err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// Generate submits payloads until the time or the octets are used up, or ctx ends.
// Those under way are finished, and count. m lends their memory; it may be nil.
func Generate(ctx context.Context, q Queue, m mail.Memory, o Order) (Result, error) {
	recipient, err := mail.ParseForwardPath(o.Recipient, false)
	if err != nil {
		return Result{}, fmt.Errorf("recipient: %w", err)
	}
	if err := o.flaw(); err != nil {
		return Result{}, err
	}
	g := &generation{queue: q, memory: m, order: o, envelope: mail.Envelope{
		Recipients: []mail.Recipient{{Path: recipient, Domain: recipient.Domain()}},
		Trace: mail.Trace{
			Hello: "generator", Client: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Node: "generator", Protocol: "ESMTP",
		},
	}}
	results := make([]Result, o.Publishers)
	begin := time.Now()
	g.until = begin.Add(o.Duration)
	var publishers sync.WaitGroup
	for i := range results {
		publishers.Go(func() { results[i] = g.publish(ctx) })
	}
	publishers.Wait()
	all := Result{Elapsed: time.Since(begin)}
	for _, r := range results {
		all.LatenciesUS = append(all.LatenciesUS, r.LatenciesUS...)
		all.Failed += r.Failed
		if all.FirstFailure == "" {
			all.FirstFailure = r.FirstFailure
		}
	}
	all.Accepted = len(all.LatenciesUS)
	all.Octets = int64(all.Accepted) * int64(o.Size)
	return all, nil
}

// A generation is one order being carried out.
type generation struct {
	queue    Queue
	memory   mail.Memory
	order    Order
	envelope mail.Envelope
	until    time.Time
	octets   atomic.Int64
}

// publish is one publisher.
func (g *generation) publish(ctx context.Context) (r Result) {
	payload := make([]byte, g.order.Size)
	_, _ = rand.Read(payload) // It never fails.
	for n := uint64(0); ctx.Err() == nil && time.Now().Before(g.until); n++ {
		if g.octets.Add(int64(len(payload))) > g.order.OctetsMax {
			return r
		}
		binary.BigEndian.PutUint64(payload[stampBytes-8:], n)
		begin := time.Now()
		if err := g.submit(ctx, payload, begin); err != nil {
			r.Failed++
			r.FirstFailure = err.Error()
			return r
		}
		r.LatenciesUS = append(r.LatenciesUS, uint32(time.Since(begin).Microseconds()))
	}
	return r
}

// submit does for one payload what the SMTP server does for a message that it has
// read: copy and hash it, have it committed, note that the answer was read.
func (g *generation) submit(ctx context.Context, payload []byte, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, submitPatience)
	defer cancel()
	body := mail.NewBodyIn(g.memory, mail.ByteSize(len(payload)))
	_, _ = body.Write(payload)
	e := g.envelope
	e.Trace.Received = now.Unix()
	id, err := g.queue.Submit(ctx, e, body)
	if err != nil {
		return err
	}
	g.queue.Settle(id)
	return nil
}
