package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A fakeHolder takes mail into memory and delivers it at a flush, with that many
// connections, all of which are open before the first message goes.
type fakeHolder struct {
	address, hop string
	connections  int
	// relay gives the copies of message i that are delivered.
	relay              func(i int, content []byte) [][]byte
	never              error // what deferred says
	flushFails, refuse error

	server  *sink.Server
	served  chan error
	flushed sync.WaitGroup

	mu             sync.Mutex
	letters        []fakeLetter
	queued, taken  int
	index          uint64
	closed, failed bool
}

type fakeLetter struct {
	from    string
	to      []string
	content []byte
}

func newFakeHolder(t *testing.T, connections int) *fakeHolder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHolder{
		address: l.Addr().String(), connections: connections, served: make(chan error, 1), index: 100,
		relay: func(_ int, content []byte) [][]byte { return [][]byte{content} },
	}
	if h.hop, err = fleet.FreeAddress(); err != nil {
		t.Fatal(err)
	}
	h.server = sink.New(sink.Options{Arrival: func(ledger.Arrival) error { return nil }, Inspect: h.take})
	go func() { h.served <- h.server.Serve(l) }()
	return h
}

func (h *fakeHolder) take(from string, to []string, content []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return h.refuse
	}
	h.letters = append(h.letters, fakeLetter{from, slices.Clone(to), bytes.Clone(content)})
	h.queued++
	h.taken++
	return nil
}

func (h *fakeHolder) targets() []string { return []string{h.address} }

func (h *fakeHolder) nextHop() string { return h.hop }

func (h *fakeHolder) deferred(_ context.Context, messages int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.queued != messages {
		return fmt.Errorf("%d messages are queued, not %d", h.queued, messages)
	}
	if c, err := net.Dial("tcp", h.hop); err == nil {
		c.Close()
		return errors.New("the next hop listens already")
	}
	return h.never
}

// flush returns at once, as the commands of both sides do.
func (h *fakeHolder) flush(context.Context) error {
	if h.flushFails != nil {
		return h.flushFails
	}
	var open sync.WaitGroup
	open.Add(h.connections)
	for n := range h.connections {
		h.flushed.Go(func() {
			c, err := smtp.Dial(h.hop)
			open.Done()
			if err != nil {
				return
			}
			open.Wait()
			defer c.Close()
			for i := n; i < h.taken; i += h.connections {
				for _, content := range h.relay(i, h.letters[i].content) {
					if err := h.deliver(c, h.letters[i], content); err != nil {
						return // It is missed at the other end.
					}
				}
				h.mu.Lock()
				h.queued--
				h.mu.Unlock()
			}
			c.Quit()
		})
	}
	h.mu.Lock()
	h.index += 7
	h.mu.Unlock()
	return nil
}

func (h *fakeHolder) deliver(c *smtp.Client, l fakeLetter, content []byte) error {
	err := c.Mail(l.from)
	for _, to := range l.to {
		err = errors.Join(err, c.Rcpt(to))
	}
	if err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	_, err = w.Write(append([]byte("Received: by fake.test id F1;\r\n\tMon, 5 Jan 2026 09:00:00 +0000\r\n"), content...))
	return errors.Join(err, w.Close())
}

func (h *fakeHolder) left(context.Context) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.queued, nil
}

func (h *fakeHolder) logIndex(context.Context) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index, nil
}

func (h *fakeHolder) close(_ context.Context, failed bool) error {
	h.server.Close()
	h.flushed.Wait()
	h.closed, h.failed = true, failed
	if err := <-h.served; !errors.Is(err, sink.ErrClosed) {
		return err
	}
	return nil
}

// sum is of all that was taken, in whatever order.
func (h *fakeHolder) sum() string {
	var all []string
	for _, l := range h.letters {
		all = append(all, fmt.Sprintf("%s %s %x", l.from, strings.Join(l.to, " "), sha256.Sum256(l.content)))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}
