package cluster

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A replica is this node's copy of the replicated queue: the shell around
// fsm.State. Consensus applies entries to it one at a time; everybody else
// reads snapshots.
//
// Invariant: state has seen exactly the entries up to state.Applied(), in
// order, and no entry after one that could not be understood.
type replica struct {
	log *slog.Logger
	// changed fires after each Apply that touched mail or a next hop.
	changed notice
	// progressed fires after every Apply.
	progressed notice
	// restores counts the snapshots that replaced the state.
	restores atomic.Uint64
	// finished is whose bodies nobody needs any more, for the reclaimer.
	finished finishedQueue

	failpoint controls.Failpoint

	mu    sync.Mutex
	state *fsm.State
	// viewed is the snapshot that view has given out since the last change, if any:
	// many look again and again while nothing happens. It is dropped with the next
	// entry, since a snapshot keeps what changes after it.
	viewed  *fsm.State
	stopped error // why this replica applies nothing more
	halted  chan struct{}
	marks   []mark
}

// A mark is where somebody wants to look at the state.
type mark struct {
	at fsm.Index
	// got, which has room for one, is given the state as the first entry from at on
	// left it, or nil where that was not seen.
	got chan<- *fsm.State
}

// An applied is what consensus hands back to a local proposer.
type applied struct {
	index  fsm.Index
	result fsm.Result
}

// errReplicaStopped: an earlier entry could not be understood.
var errReplicaStopped = errors.New("this node has stopped applying entries")

func newReplica(log *slog.Logger) *replica {
	return &replica{log: log, state: fsm.New(), halted: make(chan struct{})}
}

// Apply implements consensus.FSM. It returns an applied, or an error where the
// entry could not be understood: then the node must stop, since going on would
// let its copy differ from the others'.
func (r *replica) Apply(index uint64, data []byte, body *mail.BodyRef) any {
	r.failpoint.At("apply: committed")
	defer r.failpoint.At("apply: applied")
	command, err := fsm.DecodeCommand(data)
	if err == nil {
		err = matchBody(command, body)
	}
	r.mu.Lock()
	if r.stopped != nil {
		r.mu.Unlock()
		return errReplicaStopped
	}
	if err != nil && !errors.Is(err, errBodyMismatch) {
		r.stopped = fmt.Errorf("entry %d cannot be applied by this version: %w", index, err)
		close(r.halted)
		r.mu.Unlock()
		return r.stopped
	}
	if err != nil {
		// What the append rule watched over is not what the command names. All
		// nodes see the same difference and skip the same entry.
		r.log.Error("entry skipped", "index", index, "cause", err)
		command = fsm.Command{Node: command.Node, Action: fsm.Settle{}}
	}
	r.viewed = nil
	result, effects := r.state.Apply(fsm.Index(index), command)
	r.markedLocked(false)
	r.mu.Unlock()
	if errors.Is(err, errBodyMismatch) {
		result = fsm.Result{Verdict: fsm.Invalid, Text: err.Error()}
	}
	for _, e := range effects {
		switch e := e.(type) {
		case fsm.NextHopChanged:
			r.log.Info("next hop changed", "domain", e.Domain, "from", e.From, "to", e.To)
		case fsm.DomainStopped:
			r.log.Error("delivery stopped: the next hop is back and refuses for good what it took before", "domain", e.Domain)
		case fsm.Finished:
			r.finished.add(e.ID)
		case fsm.Queued:
		}
	}
	if wakesAgents(command.Action, effects) {
		r.changed.signal()
	}
	r.progressed.signal()
	return applied{index: fsm.Index(index), result: result}
}

// wakesAgents reports whether the delivery agents should look again.
func wakesAgents(a fsm.Action, effects []fsm.Effect) bool {
	switch a.(type) {
	case fsm.FlushDomain, fsm.ResumeDomain, fsm.PutDomain, fsm.RemoveDomain, fsm.PutSettings, fsm.Release:
		return true
	}
	for _, e := range effects {
		switch e.(type) {
		case fsm.Queued, fsm.NextHopChanged:
			return true
		}
	}
	return false
}

// errBodyMismatch: the command and the entry's Extensions name different bodies.
var errBodyMismatch = errors.New("the command's body is not the one that the entry names")

func matchBody(c fsm.Command, named *mail.BodyRef) error {
	var body mail.BodyRef
	needs := false
	switch a := c.Action.(type) {
	case fsm.Accept:
		body, needs = a.Body, true
	case fsm.IssueReport: // without a report it has no body
		body, needs = a.Report.Body, !a.Report.Body.ID.IsZero()
	}
	if needs != (named != nil) || needs && *named != body {
		return errBodyMismatch
	}
	return nil
}

// Snapshot implements consensus.FSM: constant time, since the state is copied
// on write.
func (r *replica) Snapshot() (io.WriterTo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped != nil {
		return nil, r.stopped
	}
	return stateWriter{r.state.Snapshot()}, nil
}

type stateWriter struct{ state *fsm.State }

func (w stateWriter) WriteTo(out io.Writer) (int64, error) {
	counted := &countingWriter{to: out}
	err := w.state.Encode(counted)
	return counted.n, err
}

type countingWriter struct {
	to io.Writer
	n  int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.n += int64(n)
	return n, err
}

// Restore implements consensus.FSM.
func (r *replica) Restore(from io.Reader) error {
	state, err := fsm.Decode(from)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	r.mu.Lock()
	// Before anybody can see the new state's applied index: who reads that first
	// and this second knows of the snapshot.
	r.restores.Add(1)
	r.state, r.viewed = state, nil
	r.markedLocked(true)
	r.mu.Unlock()
	r.changed.signal()
	r.progressed.signal()
	return nil
}

// Messages implements consensus.FSM.
func (r *replica) Messages() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Totals().Messages
}

// mark asks for the state as the first entry from at on leaves it. It reports whether
// that is still to come. Whoever asked gives it back with unmark.
func (r *replica) mark(at fsm.Index, got chan<- *fsm.State) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.Applied() >= at {
		return false
	}
	r.marks = append(r.marks, mark{at, got})
	return true
}

func (r *replica) unmark(got chan<- *fsm.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marks = slices.DeleteFunc(r.marks, func(m mark) bool { return m.got == got })
}

// markedLocked gives out the state to who waits for it. From a snapshot nobody knows
// which entry was the first.
func (r *replica) markedLocked(restored bool) {
	r.marks = slices.DeleteFunc(r.marks, func(m mark) bool {
		switch {
		case r.state.Applied() < m.at:
			return false
		case restored:
			m.got <- nil
		default:
			m.got <- r.state.Snapshot()
		}
		return true
	})
}

// view returns a snapshot that stays as it is while the queue goes on. Others may
// have the same one: it is for reading.
func (r *replica) view() *fsm.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.viewed == nil {
		r.viewed = r.state.Snapshot()
	}
	return r.viewed
}

// liveWindow is how many bodies liveBodies looks up in one snapshot of the queue.
// It bounds memory: a snapshot keeps what changes after it.
const liveWindow = 1024

// liveBodies yields those bodies of live messages for which wanted is true, the
// oldest first. What comes meanwhile is yielded, too; what has finished meanwhile
// may be.
func (r *replica) liveBodies(wanted func(mail.BodyRef) bool) iter.Seq[mail.BodyRef] {
	return func(yield func(mail.BodyRef) bool) {
		window := make([]mail.BodyRef, 0, liveWindow)
		for from := fsm.Index(0); ; {
			window = window[:0]
			for entry, ref := range r.view().LiveBodies(from) {
				if wanted(ref) {
					window = append(window, ref)
				}
				from = entry + 1
				if len(window) == liveWindow {
					break
				}
			}
			for _, ref := range window {
				if !yield(ref) {
					return
				}
			}
			if len(window) < liveWindow {
				return
			}
		}
	}
}

// appliedIndex returns the index of the last applied entry.
func (r *replica) appliedIndex() fsm.Index {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Applied()
}

// start returns the newest start of a server that has been applied.
func (r *replica) start(id fsm.ServerID) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Start(id)
}

// totals returns the counts over the whole queue.
func (r *replica) totals() fsm.Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Totals()
}

// read calls fn with the live state, for short look-ups that are not worth a
// snapshot. fn must not keep it.
func (r *replica) read(fn func(*fsm.State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(r.state)
}

// err returns why the replica stopped, or nil.
func (r *replica) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped
}
