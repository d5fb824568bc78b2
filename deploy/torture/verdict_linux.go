package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// errBroken says that a promise was broken.
var errBroken = errors.New("a promise was broken")

// A verdict is what a run found.
type verdict struct {
	report  ledger.Report
	copies  ledger.Copies
	notices ledger.Notices
	relayed int
	broken  []string
}

// String is the line that a run closes with.
func (v verdict) String() string {
	return fmt.Sprintf("acked=%d lost=%d altered=%d relayed=%d duplicates=%d bound=%d",
		v.report.Accepted, v.report.Lost, v.report.Altered, v.relayed, v.copies.Extra, v.copies.Bound)
}

// judge compares the ledgers, prints the last line and writes the report.
func (r *run) judge(ctx context.Context) error {
	book, err := ledger.Load(filepath.Join(r.dir, "sent.jsonl"), filepath.Join(r.dir, "arrived.jsonl"))
	if err != nil {
		return err
	}
	book.Tell(telling(r.cast.bounce)...)
	r.cast.primaryDown() // which counts what it saw
	if n := r.cast.reports.Stats().Violations; n > 0 {
		r.diary.breach("L9", "the smarthost saw %d violations of SMTP", n)
	}
	if r.relayAsked == 0 {
		r.diary.breach("L4", "no node was ever asked to relay")
	}
	r.doubts = r.counted(ctx)
	v := r.weigh(book, r.cast.fabric.Strangers())
	r.lookAtMarks(ctx, v.copies.AgainAs)
	r.lookAtNodes(ctx)
	v.broken = r.diary.breaches()
	if err := r.write(v); err != nil {
		return err
	}
	fmt.Println(v)
	if len(v.broken) > 0 {
		return fmt.Errorf("%w: %d times, first %s", errBroken, len(v.broken), v.broken[0])
	}
	return nil
}

// weigh judges all that was written down: what was sent and what arrived, where packets
// went that no host of the run has, and the diary.
func (r *run) weigh(book *ledger.Ledger, strangers map[string]int) verdict {
	d := r.diary
	v := verdict{report: book.Check(), copies: book.CheckCopies(r.interrupted), notices: book.CheckNotices(r.interrupted), relayed: r.relayAgreed}
	v.relayed += v.report.Unexpected
	for address, n := range strangers {
		if address == net.JoinHostPort(addressNobody, "53") {
			continue // a resolver that is not there
		}
		v.relayed += n
		d.breach("L4", "%d packets that begin something went to %s", n, address)
	}
	for _, c := range slices.Concat(v.report.Cases, v.copies.Cases, v.notices.Cases) {
		d.say("%s", c)
	}
	for law, n := range map[string]int{
		"L1 lost": v.report.Lost, "L2 altered": v.report.Altered, "L3 with too many copies": v.copies.TooMany,
		"L4 arrived that nobody sent": v.report.Unexpected, "L5 delivered though refused": v.report.Refused,
		"L9 refused for good, and the sender was not told":                v.notices.Untold,
		"L9 of which somebody was told who should not, or what is not so": v.notices.Undue,
		"L9 arrived, and are held or said to have failed":                 v.notices.Both,
		"L9 with too many copies of a report":                             v.notices.TooMany,
	} {
		if n > 0 {
			d.breach(law[:2], "%d %s", n, law[3:])
		}
	}
	// What a real primary makes of one dot is its own.
	if again := v.copies.Again; !r.cast.peer.primary() && r.doubts != nil && again > *r.doubts {
		d.breach("L3", "%d final dots brought again what had arrived, and the nodes counted %d doubts", again, *r.doubts)
	}
	for _, w := range r.load.late(r.away) {
		d.breach("L5", "%v", w)
	}
	for _, p := range ledger.Pauses(r.o.nodes, r.offered, d.allOutages(), d.allStalls(), d.allAcks(), resumeTime) {
		d.breach("L8", "no 250 from %.1f s to %.1f s, with a healthy majority", p.From.Sub(r.begin).Seconds(), p.To.Sub(r.begin).Seconds())
	}
	if v.notices.Due == 0 {
		d.say("no sender was to be told of anything: L9 was not tried")
	}
	if stats := r.load.stats(); stats.Refused+stats.GivenUp > 0 {
		d.breach("L8", "%d recipients refused for good, %d given up", stats.Refused, stats.GivenUp)
	}
	if r.cast.strict > 0 {
		d.breach("L2", "the primary saw %d violations of SMTP", r.cast.strict)
	}
	if v.report.Accepted == 0 {
		d.breach("L8", "nothing was accepted")
	}
	return v
}

// counted returns how many attempts the nodes counted as in doubt, nil where none tells.
func (r *run) counted(ctx context.Context) (doubts *int) {
	for _, s := range r.cast.statuses(ctx) {
		if n := s.Counters.PossibleDuplicates; doubts == nil || n > *doubts {
			doubts = &n
		}
	}
	return doubts
}

// lateTime is how long behind the outage of a node a copy may come that it had begun
// before: it was frozen, or what it sent was.
const lateTime = 2 * leaseTime

// interrupted reports whether the node that delivered a copy may have been kept
// from recording it before its lease ended: it had an outage itself, or the node that
// led had, or so many that nothing could be committed. The last copy may be late, where
// the node itself had an outage before.
func (r *run) interrupted(a ledger.Arrival, last bool) bool {
	from, to := a.At.Add(-time.Second), r.cast.peer.wrote(a).Add(leaseTime)
	if last {
		from, to = a.At.Add(-lateTime), r.cast.peer.wrote(a)
	}
	var nodes []int
	for _, o := range r.diary.allOutages() {
		if !o.Span.From.Before(to) || !o.Span.To.After(from) {
			continue
		}
		if strings.HasPrefix(a.Peer, addressNode(o.Node).String()+":") {
			return true
		}
		if last {
			continue
		}
		if r.diary.led(r.cast.fleet.Nodes[o.Node].Name, from.Add(-watchEvery), to.Add(watchEvery)) {
			return true
		}
		if !slices.Contains(nodes, o.Node) {
			nodes = append(nodes, o.Node)
		}
	}
	return len(nodes) > len(r.cast.fleet.Nodes)/2
}

// away says when a node, by its address, could not be talked to.
func (r *run) away(address string) []ledger.Span {
	i := slices.IndexFunc(r.cast.fleet.Nodes, func(n *fleet.Node) bool { return n.SMTP == address })
	return r.diary.away(i)
}

// marksMax bounds the messages of which a run asks whether they are marked.
const marksMax = 1000

// lookAtMarks looks whether each message that came again is known as one that may.
func (r *run) lookAtMarks(ctx context.Context, ids []string) {
	if r.cast.peer.primary() {
		return // what it makes of one dot is its own
	}
	if len(ids) > marksMax {
		r.diary.breach("L3", "%d messages came again", len(ids))
		ids = ids[:marksMax]
	}
	for _, id := range ids {
		var m struct {
			PossibleDuplicate bool `json:"possible_duplicate"`
		}
		err := r.cast.await(ctx, settleTime, func(ctx context.Context) error {
			at := r.cast.leader(ctx)
			if at < 0 {
				return errors.New("nobody leads")
			}
			out, err := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[at], "queue", "show", id, "-o", "json")
			if err != nil {
				return err
			}
			return json.Unmarshal(out, &m)
		})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.diary.breach("L3", "%s came again, and nothing is known of it: %v", id, err)
		case !m.PossibleDuplicate:
			r.diary.breach("L3", "%s came again, and is not marked as one that may", id)
		}
	}
}

// lookAtNodes looks at what is left open, and whether all queues are the same.
func (r *run) lookAtNodes(ctx context.Context) {
	logs := map[string][]byte{}
	for _, n := range r.cast.fleet.Nodes {
		text, err := os.ReadFile(n.Log)
		if err != nil {
			r.diary.breach("L6", "the log of %s: %v", n.Name, err)
		}
		logs[n.Name] = text
	}
	terms, twice := termsLed(logs)
	if terms == 0 {
		r.diary.breach("L6", "no node's log says who led")
	}
	for _, t := range twice {
		r.diary.breach("L6", "%s", t)
	}
	for i, n := range r.cast.fleet.Nodes {
		if err := fell(n); err != nil {
			r.diary.breach("L8", "%v", err)
			continue
		}
		open, err := descriptors(n.PID())
		if err = errors.Join(err, leaked(r.files[i], open)); err != nil {
			r.diary.breach("L7", "%s: %v", n.Name, err)
		}
	}
	if len(r.cast.fleet.Running()) < r.o.nodes {
		return
	}
	var differ error
	err := r.cast.await(ctx, settleTime, func(ctx context.Context) error {
		_, err := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[0], "compare")
		if err != nil && !strings.Contains(err.Error(), "not every node told") {
			differ = err // which does not get better
			return nil
		}
		return err // a connection that was cut for long may take a while
	})
	if err = errors.Join(err, differ); err != nil {
		r.diary.breach("L6", "the nodes' queues: %v", err)
	}
}

// descriptorsMore is how many more files a node may have open at the end than at the
// beginning: segments come and go.
const descriptorsMore = 40

// leaked says that a node has more files open at the end than come and go.
func leaked(before, after int) error {
	if after <= before+descriptorsMore {
		return nil
	}
	return fmt.Errorf("%d files open at the end, %d at the beginning", after, before)
}
