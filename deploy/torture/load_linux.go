package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

const (
	// pauseBetween is waited between two letters of a session.
	pauseBetween = 350 * time.Millisecond
	// replyTime is longer than the patience of a node, which promises an end.
	replyTime = patience + 10*time.Second
	// replySlack is how much later than its patience a node may answer: a message
	// may have waited for others before its commit began, and the host is busy.
	replySlack = 5 * time.Second
	// commandTime bounds the wait for other replies of a sender that has other nodes
	// to go to: a node that is stopped gives none. The others wait replyTime.
	commandTime = 8 * time.Second
	// giveUpTime is how long a sender tries after the last letter was begun.
	giveUpTime = 100 * time.Second
	// letterMax bounds the ledgers. The longest run sends fewer.
	letterMax = 150_000
)

// A load is all senders of a run. Some keep to one node, so that each is offered
// mail all the time; the others go on to the next node when one does not take it,
// as a mail server does with equal MX hosts.
type load struct {
	diary   *diary
	sent    *ledger.Ledger
	book    *ledger.Ledger // of both sides
	senders []*sender.Sender
	stop    context.CancelFunc // no new letters
	running sync.WaitGroup
	failed  chan error

	letters atomic.Int64

	mu    sync.Mutex
	waits []ledger.Wait // those that were too long, unless something excuses them
}

// waited keeps what is too long.
func (l *load) waited(w ledger.Wait) {
	if w.Span.To.Sub(w.Span.From) <= patience+replySlack {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits = append(l.waits, w)
}

// late returns the waits that were too long and that nothing excuses.
func (l *load) late(away func(target string) []ledger.Span) []ledger.Wait {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ledger.Late(l.waits, patience+replySlack, away)
}

// Intent and Outcome record, and note 250s.
func (l *load) Intent(i ledger.Intent) error {
	return errors.Join(l.sent.Intent(i), l.book.Intent(i))
}

func (l *load) Outcome(o ledger.Outcome) error {
	if err := errors.Join(l.sent.Outcome(o), l.book.Outcome(o)); err != nil {
		return err
	}
	if o.Result == ledger.OK {
		l.diary.acked(len(o.Recipients))
	}
	return nil
}

// admit lets letters begin while open lives.
func admit(open context.Context) func(context.Context, int) bool {
	return func(context.Context, int) bool { return open.Err() == nil }
}

// begin starts all senders.
func begin(ctx context.Context, d *diary, sent, book *ledger.Ledger, seed uint64, addresses []string, p *peer) (*load, error) {
	l := &load{diary: d, sent: sent, book: book, failed: make(chan error, len(addresses)+1)}
	open, stop := context.WithCancel(ctx)
	l.stop = stop
	dialer := &net.Dialer{Timeout: commandTime, LocalAddr: &net.TCPAddr{IP: addressSender.AsSlice()}}
	for i := range len(addresses) + 1 {
		o := sender.Options{
			Targets: addresses, Sessions: 6, PerConnection: 7, Pause: pauseBetween, Seed: seed + uint64(i), Hello: "sender.test",
			ReplyTime: replyTime, CommandTime: commandTime, GiveUp: time.Hour, Record: l, Admit: admit(open), Waited: l.waited,
			Dial: func(ctx context.Context, address string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp", address)
			},
		}
		if i < len(addresses) {
			o.Targets, o.Sessions, o.CommandTime = addresses[i:i+1], 2, replyTime
		} else if p.sender() {
			p.hand(&o)
		}
		shapes := p.shapes(i == len(addresses))
		letters := letter.Options{
			Seed: seed, Run: fmt.Sprintf("s%dx%d", seed, i), Domains: domains(), Sizes: letter.ShapesOfMail, BigAt: -1,
		}
		if p == nil { // a real primary has everybody; a real sender reports itself
			letters.RefusedEvery = refusedEvery
		}
		generator := letter.New(letters)
		o.Letter = func(n int) *letter.Letter {
			if l.letters.Add(1) > letterMax {
				l.stop()
			}
			return generator.Letter(among(shapes, n))
		}
		s, err := sender.New(o)
		if err != nil {
			stop()
			return nil, err
		}
		l.senders = append(l.senders, s)
		l.running.Go(func() {
			if err := s.Run(ctx); err != nil {
				l.failed <- fmt.Errorf("sender: %w", err)
			}
		})
	}
	return l, nil
}

// finish lets the letters that were begun come to their end.
func (l *load) finish(limit time.Duration) error {
	l.stop()
	done := make(chan struct{})
	go func() { l.running.Wait(); close(done) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		return fmt.Errorf("letters that were begun got no 250 within %v after the last fault", limit)
	}
	select {
	case err := <-l.failed:
		return err
	default:
		return nil
	}
}

func (l *load) stats() (all sender.Stats) {
	for _, s := range l.senders {
		all.Add(s.Stats())
	}
	return all
}

// foreign are recipients that no node may take.
var foreign = []string{"victim@elsewhere.test", "victim%elsewhere.test@example.test", "@example.test:victim@elsewhere.test", "victim@elsewhere.test@example.org"}

// stranger asks nodes to relay until ctx ends, and counts how often, and how often one
// agreed.
func stranger(ctx context.Context, d *diary, seed uint64, addresses []string) (asked, agreed int) {
	r := rand.New(rand.NewPCG(seed, 0x737472616e676572))
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return asked, agreed
		}
		address, recipient := addresses[r.IntN(len(addresses))], foreign[r.IntN(len(foreign))]
		reply, err := ask(ctx, address, recipient)
		if err != nil {
			continue // a node that is down relays nothing
		}
		asked++
		if strings.HasPrefix(reply, "2") {
			agreed++
			d.breach("L4", "%s would relay to <%s>: %s", address, recipient, reply)
		}
	}
}

// ask gives a node one recipient, and returns its reply.
func ask(ctx context.Context, address, recipient string) (string, error) {
	dialer := &net.Dialer{Timeout: 2 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addressSender, 0))}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	in := bufio.NewReader(conn)
	var last string
	for _, line := range []string{"", "HELO stranger.test", "MAIL FROM:<stranger@elsewhere.test>", "RCPT TO:<" + recipient + ">"} {
		if line != "" {
			if !strings.HasPrefix(last, "2") {
				return "", errors.New(last)
			}
			fmt.Fprintf(conn, "%s\r\n", line)
		}
		if last, err = in.ReadString('\n'); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(last), nil
}
