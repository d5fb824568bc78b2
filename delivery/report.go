package delivery

import (
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// Outcomes are reported when so many messages have one, at the end of their lease,
	// or after reportDelay: each report is an entry in the log, and each outcome that
	// is not reported when its node dies is a second copy at the next hop. It is long
	// enough for a batch over a connection with 50 ms of round trip; what it adds in
	// copies is bounded by the batch, which is as long as the window of those that
	// are named as begun, and so in doubt then anyway.
	reportBatch = 8
	reportDelay = 400 * time.Millisecond
	// reportBytesMax keeps a report below the size that an entry may have
	// (64 KiB), with the estimated octets per message and recipient beside the
	// text of the reply.
	reportBytesMax       = 48 << 10
	reportMessageBytes   = 32
	reportRecipientBytes = 32
	// A report that was not answered is repeated after this long.
	reportFirst = 500 * time.Millisecond
	reportMost  = 10 * time.Second
)

// A reporter reports the outcomes of one lease, in batches, each until it is
// answered.
//
// Invariant: a batch that was once proposed is repeated unchanged; the messages
// in it are never delivered again under this token.
type reporter struct {
	a      *Agent
	domain mail.Domain
	token  fsm.Token
	kick   chan struct{}
	done   chan struct{} // closed when everything was answered, or given up at shutdown

	mu      sync.Mutex
	pending []fsm.MessageOutcomes // at most a lease's messages
	closed  bool
}

func newReporter(a *Agent, domain mail.Domain, token fsm.Token) *reporter {
	return &reporter{a: a, domain: domain, token: token, kick: make(chan struct{}, 1), done: make(chan struct{})}
}

// add takes the outcome of a message that is over.
func (r *reporter) add(o fsm.MessageOutcomes) {
	r.mu.Lock()
	r.pending = append(r.pending, bounded(o))
	r.mu.Unlock()
	r.poke()
}

// close says that nothing more comes.
func (r *reporter) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) poke() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *reporter) run() {
	defer close(r.done)
	for {
		var late <-chan time.Time
		for !r.due() {
			if r.over() {
				return
			}
			if late == nil && r.waiting() {
				timer := time.NewTimer(reportDelay)
				defer timer.Stop()
				late = timer.C
			}
			select {
			case <-r.kick:
				continue
			case <-late:
			case <-r.a.final.Done():
				return
			}
			break
		}
		if batch := r.take(); len(batch) > 0 && !r.send(batch) {
			return
		}
	}
}

func (r *reporter) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) >= reportBatch || r.closed && len(r.pending) > 0
}

func (r *reporter) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed && len(r.pending) == 0
}

func (r *reporter) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) > 0
}

// take returns what fits into one report.
func (r *reporter) take() []fsm.MessageOutcomes {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, size := 0, 0
	for n < len(r.pending) && (n == 0 || size+reportSize(r.pending[n]) <= reportBytesMax) {
		size += reportSize(r.pending[n])
		n++
	}
	batch := r.pending[:n:n]
	r.pending = r.pending[n:]
	return batch
}

// send repeats a report until it is answered. False means that the agent was
// shut down first.
func (r *reporter) send(batch []fsm.MessageOutcomes) bool {
	trouble := backoff{first: reportFirst, most: reportMost}
	for {
		r.a.stats.Reports.Add(1)
		ctx, cancel := r.a.callContext()
		err := r.a.c.Queue.Report(ctx, r.token, batch)
		cancel()
		if err == nil {
			return true
		}
		r.a.c.Log.Warn("outcomes not reported, repeating", "domain", r.domain, "token", uint64(r.token), "messages", len(batch), "error", err)
		if !sleep(r.a.final, r.a.jitter(trouble.grow())) {
			return false
		}
		r.a.stats.ReportsRepeated.Add(1)
	}
}

func reportSize(o fsm.MessageOutcomes) int {
	size := reportMessageBytes
	for _, r := range o.Recipients {
		size += reportRecipientBytes + len(r.Reply.Text)
	}
	return size
}

// bounded shortens the replies' texts until the message alone fits into a
// report: one report of a message ends its lease record, so it cannot be split.
func bounded(o fsm.MessageOutcomes) fsm.MessageOutcomes {
	if reportSize(o) <= reportBytesMax {
		return o
	}
	room := max(0, reportBytesMax-reportMessageBytes-reportRecipientBytes*len(o.Recipients)) / len(o.Recipients)
	for i := range o.Recipients {
		reply := &o.Recipients[i].Reply
		if len(reply.Text) > room {
			reply.Text = cutText(reply.Text, room)
		}
	}
	return o
}
