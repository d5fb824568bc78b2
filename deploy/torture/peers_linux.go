package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// knowsNothing is the address of a resolver that says of each name that there is none.
// A server looks its clients up before it greets them, and waits for a resolver that
// says nothing.
const knowsNothing = "127.0.0.1"

// resolve is that resolver. It ends with conn.
func resolve(conn net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if n < 12 {
			continue // no header (RFC 1035 section 4.1.1)
		}
		// The question comes back as a reply, recursion available, NXDOMAIN.
		b[2], b[3] = b[2]|0x80, 0x83
		_, _ = conn.WriteTo(b[:n], from)
	}
}

// peerName is what a real mail server is called, and its directory.
const peerName = "peer"

// A peer is a real mail server on one side of the nodes. A nil one is none.
type peer struct {
	is     schedule.Peer
	diary  *diary
	server mailserver.Server
	names  net.PacketConn
	// sent, arrived and book are the run's ledgers.
	sent, arrived, book *ledger.Ledger

	reading sync.Mutex // over mu
	mu      sync.Mutex
	runs    bool  // it was started, and not killed since
	shelf   shelf // of a primary
	post    post  // of a sender
}

// newPeer makes the peer of a run in dir, which every user can reach afterwards.
func newPeer(is schedule.Peer, d *diary, dir, unpacked string, hosts []string, sent, arrived, book *ledger.Ledger) (*peer, error) {
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	names, err := net.ListenPacket("udp", net.JoinHostPort(knowsNothing, "53"))
	if err != nil {
		return nil, err
	}
	go resolve(names)
	p := &peer{names: names, is: is, diary: d, sent: sent, arrived: arrived, book: book}
	p.shelf.latest = map[copyOf]time.Time{}
	p.post.letters, p.post.open = map[string]*handed{}, map[string]bool{}
	place := mailserver.Place{Dir: dir, Name: peerName, Port: primaryPort, Unpacked: unpacked, Resolver: knowsNothing}
	home := filepath.Join(dir, peerName, "mailbox")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return nil, err
	}
	if is.Side == schedule.Sender {
		place.Address = addressSender.String()
		p.server, err = mailserver.NewSender(is.Make, place, hosts, fleet.HostPortSMTP)
		return p, err
	}
	place.Address = addressPrimary.String()
	p.shelf.box = mailserver.Maildir{Path: filepath.Join(home, "Maildir"), Take: true}
	p.server, err = mailserver.NewPrimary(is.Make, place, domains(), p.shelf.box.Path)
	return p, err
}

// primary reports whether it is the primary.
func (p *peer) primary() bool { return p != nil && p.is.Side == schedule.Primary }

// sender reports whether it is a sender.
func (p *peer) sender() bool { return p != nil && p.is.Side == schedule.Sender }

// address is where it listens.
func (p *peer) address() string {
	a := addressPrimary
	if p.sender() {
		a = addressSender
	}
	return a.String() + ":" + strconv.Itoa(primaryPort)
}

// up starts it, if it does not run.
func (p *peer) up() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runs {
		return nil
	}
	if err := p.server.Start(); err != nil {
		return err
	}
	p.runs = true
	return nil
}

// kill ends all its processes at once.
func (p *peer) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs = false
	return p.server.Signal(syscall.SIGKILL)
}

// greets waits until it takes mail.
func (p *peer) greets(ctx context.Context, c *cast) error {
	err := c.await(ctx, openTime, func(ctx context.Context) error { return fleet.Greets(ctx, p.address()) })
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", p.is, err, mailserver.Tail(p.server))
	}
	return nil
}

// shapes are those of the letters that are sent in this run by way of a sender that
// is real, or not.
func (p *peer) shapes(bySender bool) []letter.Shape {
	switch {
	case p.primary():
		return p.is.Make.Keeps()
	case p.sender() && bySender:
		// The ledger holds what is sent, so nothing that is folded on the way.
		return slices.DeleteFunc(p.is.Make.HandsOn(), func(s letter.Shape) bool { return s == letter.Line5000 })
	}
	return letter.Shapes()
}

// among returns the number of a letter whose shape is one of those: the n-th of them.
func among(shapes []letter.Shape, n int) int {
	all := letter.Shapes()
	return n/len(shapes)*len(all) + slices.Index(all, shapes[n%len(shapes)])
}

// cannot says why a real primary does not do a kind of fault, "" if it does.
func (p *peer) cannot(k schedule.Kind) string {
	if p.primary() && k == schedule.PrimaryPuts {
		return fmt.Sprintf("%s puts nothing off", p.is.Make)
	}
	return ""
}

// misbehave makes a real primary a bad one.
func (p *peer) misbehave(a *act, k schedule.Kind, r *rand.Rand) (mend func() error, err error) {
	end := p.disturb()
	var rounds atomic.Int64
	switch k {
	case schedule.PrimaryDown:
		a.seen = away
		err = p.kill()
		mend = p.up
	case schedule.PrimaryDrops:
		// All connections end at once, whatever they are at; it is there again as
		// soon as it can.
		a.seen = func() string { return times(&rounds) }
		mend = meanwhile(func(ctx context.Context) {
			wait(ctx, time.Duration(500+r.IntN(2500))*time.Millisecond)
			if err := errors.Join(p.kill(), p.up()); err != nil {
				p.diary.say("restart the primary: %v", err)
				return
			}
			rounds.Add(1)
		}, func() {})
		mend = join(mend, p.up)
	case schedule.PrimarySlow:
		a.seen = func() string { return times(&rounds) }
		mend = meanwhile(func(ctx context.Context) {
			rounds.Add(1)
			_ = p.server.Signal(syscall.SIGSTOP) // who has just ended is replaced by one that runs
			wait(ctx, time.Duration(200+r.IntN(1500))*time.Millisecond)
			_ = p.server.Signal(syscall.SIGCONT)
			wait(ctx, time.Duration(20+r.IntN(80))*time.Millisecond)
		}, func() {})
		mend = join(mend, func() error { return p.server.Signal(syscall.SIGCONT) })
	case schedule.PrimaryMute:
		// The kernel goes on taking connections.
		a.seen = func() string { return tardy(primaryAddress()) }
		err = p.server.Signal(syscall.SIGSTOP)
		mend = func() error { return p.server.Signal(syscall.SIGCONT) }
	default:
		err = errNobody
	}
	return join(mend, func() error { end(); return nil }), err
}

// times says how often something was done.
func times(n *atomic.Int64) string {
	if n.Load() == 0 {
		return ""
	}
	return fmt.Sprintf("%d times", n.Load())
}

func join(steps ...func() error) func() error {
	return func() error {
		var errs []error
		for _, step := range steps {
			errs = append(errs, step())
		}
		return errors.Join(errs...)
	}
}

// close ends it.
func (p *peer) close() error {
	if p == nil || p.server == nil {
		return nil
	}
	return errors.Join(p.kill(), p.names.Close())
}
