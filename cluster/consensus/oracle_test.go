package consensus

import (
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Commands of the test's FSM.
const (
	commandAccept byte = iota + 1
	commandFinish
	commandNothing
)

func acceptCommand(ref mail.BodyRef) []byte { return append([]byte{commandAccept}, ref.Encode()...) }
func finishCommand(ref mail.BodyRef) []byte { return append([]byte{commandFinish}, ref.Encode()...) }

func readCommand(data []byte) (kind byte, ref mail.BodyRef) {
	if len(data) > 1 && data[0] != commandNothing {
		ref, _ = mail.DecodeBodyRef(data[1:min(len(data), 1+mail.BodyRefBytes)])
	}
	return data[0], ref
}

// batchCommand is a command without effect, the one at a position of a batch.
func batchCommand(batch uint64, position byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{commandNothing}, batch), position)
}

func readBatch(data []byte) (batch uint64, position byte, ok bool) {
	if len(data) != 10 || data[0] != commandNothing {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(data[1:9]), data[9], true
}

// A testFSM is a queue with nothing in it but bodies.
type testFSM struct {
	proc *process

	mu       sync.Mutex
	held     chan struct{} // Apply waits until it is closed; nil: it does not
	dead     bool
	applied  uint64
	commands int
	restored int
	messages map[mail.QueueID]message
}

type message struct {
	ref      mail.BodyRef
	finished bool
}

func newTestFSM(p *process) *testFSM {
	return &testFSM{proc: p, messages: make(map[mail.QueueID]message)}
}

func (f *testFSM) die() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
}

// hold makes Apply wait for letGo.
func (f *testFSM) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = make(chan struct{})
}

func (f *testFSM) letGo() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.held)
	f.held = nil
}

func (f *testFSM) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commands
}

// Messages returns how many messages the state has.
func (f *testFSM) Messages() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.messages)
}

// restores returns how often the state was replaced by a snapshot.
func (f *testFSM) restores() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.restored
}

func (f *testFSM) view() (applied uint64, messages map[mail.QueueID]message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, maps.Clone(f.messages)
}

func (f *testFSM) knows(ref mail.BodyRef) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.messages[ref.ID].ref == ref
}

func (f *testFSM) Apply(index uint64, data []byte, body *mail.BodyRef) any {
	kind, ref := readCommand(data)
	f.mu.Lock()
	held := f.held
	f.mu.Unlock()
	if held != nil {
		<-held
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return nil
	}
	o := f.proc.member.c.oracle
	if index <= f.applied {
		o.violation("%s applied %d after %d", f.proc.member.name, index, f.applied)
	}
	if (kind == commandAccept) != (body != nil) || body != nil && *body != ref {
		o.violation("entry %d: command names %v, extensions %v", index, ref, body)
	}
	o.applying(f.proc.member, index, data)
	f.applied = index
	f.commands++
	switch kind {
	case commandAccept:
		if _, known := f.messages[ref.ID]; !known {
			f.messages[ref.ID] = message{ref: ref}
		}
	case commandFinish:
		f.messages[ref.ID] = message{ref: ref, finished: true}
	}
	return index
}

// A testSnapshot is what a snapshot holds.
type testSnapshot struct {
	Applied  uint64
	Commands int
	Live     []mail.BodyRef
	Finished []mail.BodyRef
}

func (f *testFSM) Snapshot() (io.WriterTo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := testSnapshot{Applied: f.applied, Commands: f.commands}
	for _, m := range f.messages {
		if m.finished {
			s.Finished = append(s.Finished, m.ref)
		} else {
			s.Live = append(s.Live, m.ref)
		}
	}
	return s, nil
}

func (s testSnapshot) WriteTo(w io.Writer) (int64, error) { return 0, gob.NewEncoder(w).Encode(s) }

func (f *testFSM) Restore(r io.Reader) error {
	var s testSnapshot
	if err := gob.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied, f.commands = s.Applied, s.Commands
	f.restored++
	f.messages = make(map[mail.QueueID]message)
	for _, ref := range s.Live {
		f.messages[ref.ID] = message{ref: ref}
	}
	for _, ref := range s.Finished {
		f.messages[ref.ID] = message{ref: ref, finished: true}
	}
	return nil
}

// The oracle watches all members and knows what must hold:
//
//   - when an index is first applied anywhere, the entry, and the body that it
//     names, are whole on the disks of a majority of the voters; the same of the
//     body when a client hears of it, unless the message is finished;
//   - one term and one command per index, whoever applies it;
//   - I1: what an entry names as it is stored is here, and as it is applied is
//     held, or the floor covers it;
//   - a floor is never above the greatest commit index that anybody has known;
//   - of a batch, no command is applied unless those before it were.
type oracle struct {
	c *testCluster

	mu     sync.Mutex
	voters []string
	// next are the voters after the change that is under way, nil where none is;
	// before are those before the last one, nil where that is settled.
	next, before []string
	applied      map[uint64]appliedEntry
	finished     map[mail.QueueID]bool
	acked        map[mail.QueueID]mail.BodyRef
	batches      map[uint64]byte // where the next command of a batch belongs
	violations   []string
	stores       func(*testMember, []*raft.Log)
	noted        map[string]int // violations by kind
	dropped      int
}

type appliedEntry struct {
	by   string
	term uint64
	data string
}

// violationsMax is how many violations of one kind are kept.
const violationsMax = 5

func newOracle(c *testCluster) *oracle {
	return &oracle{
		c: c, applied: make(map[uint64]appliedEntry),
		noted: make(map[string]int), finished: make(map[mail.QueueID]bool), acked: make(map[mail.QueueID]mail.BodyRef),
		batches: make(map[uint64]byte),
	}
}

func (o *oracle) setVoters(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.voters, o.next, o.before = names, nil, nil
}

// changed says that the change that was under way has made these the voters.
func (o *oracle) changed(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.voters, o.next, o.before = names, nil, o.voters
}

// changing says that these may be the voters from now on, or that nothing
// changes.
func (o *oracle) changing(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next = names
}

// majority returns how many of the voters there are that have something, and how
// many must: of those under whom the most are there beyond that, where a change
// is under way.
func (o *oracle) majority(has func(*testMember) bool, also ...[]string) (copies, majority int) {
	for i, voters := range append([][]string{o.voters, o.next}, also...) {
		if i > 0 && len(voters) == 0 {
			continue
		}
		n, need := 0, len(voters)/2+1
		for _, name := range voters {
			if has(o.c.members[name]) {
				n++
			}
		}
		if i == 0 || n-need > copies-majority {
			copies, majority = n, need
		}
	}
	return copies, majority
}

func (o *oracle) violation(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.note(format, args...)
}

func (o *oracle) note(format string, args ...any) {
	if o.noted[format]++; o.noted[format] > violationsMax {
		o.dropped++
		return
	}
	o.violations = append(o.violations, fmt.Sprintf(format, args...))
}

// found returns the violations so far.
func (o *oracle) found() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.violations
}

// copies counts the voters whose disk has a body whole.
func (o *oracle) copies(ref mail.BodyRef, also ...[]string) (copies, majority int) {
	return o.majority(func(m *testMember) bool { return m.bodyDisk.Has(ref) }, also...)
}

func (o *oracle) applying(m *testMember, index uint64, data []byte) {
	l, _ := m.disk.Entry(index)
	kind, ref := readCommand(data)
	if floor := m.floor(); kind == commandAccept && floor < index && !m.bodyDisk.Has(ref) {
		o.violation("I1: %s applies entry %d without %s, floor %d", m.name, index, ref, floor)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if first, seen := o.applied[index]; seen {
		if first.data != string(data) || first.term != l.Term && l.Term != 0 {
			o.note("index %d: %s applied term %d %x, %s applied term %d %x", index, first.by, first.term, first.data, m.name, l.Term, data)
		}
		return
	}
	o.applied[index] = appliedEntry{m.name, l.Term, string(data)}
	if batch, position, ok := readBatch(data); ok {
		if next := o.batches[batch]; position != next {
			o.note("index %d: command %d of batch %x, of which the first %d were applied", index, position, batch, next)
		}
		o.batches[batch] = position + 1
	}
	o.stored(m, index, l)
	if kind == commandFinish {
		o.finished[ref.ID] = true
		return
	}
	if kind == commandAccept && !o.finished[ref.ID] {
		if copies, majority := o.copies(ref); copies < majority {
			o.note("index %d: committed with %d copies of %s, majority is %d", index, copies, ref, majority)
		}
	}
}

// stored checks that an entry which is applied for the first time is on the
// disks of a majority. A member applies nothing that it has not on its own.
func (o *oracle) stored(m *testMember, index uint64, l raft.Log) {
	for _, name := range o.voters {
		if o.c.members[name].open != nil {
			return // on another disk than the test's
		}
	}
	copies, majority := o.majority(func(v *testMember) bool { return v.disk.Covers(index, l.Term, l.Data) })
	if l.Index == 0 {
		o.note("index %d: applied by %s, which has not got it on its disk", index, m.name)
	} else if copies < majority {
		o.note("index %d: applied by %s with %d copies of the entry, majority is %d", index, m.name, copies, majority)
	}
}

// commandAt returns what was applied as an index.
func (o *oracle) commandAt(index uint64) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.applied[index].data
}

// commands returns what was applied.
func (o *oracle) commands() map[string]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[string]bool, len(o.applied))
	for _, e := range o.applied {
		all[e.data] = true
	}
	return all
}

func (o *oracle) acknowledged(data []byte) {
	kind, ref := readCommand(data)
	if kind != commandAccept {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acked[ref.ID] = ref
	if o.finished[ref.ID] {
		return
	}
	// It may have been committed before the last change.
	if copies, majority := o.copies(ref, o.before); copies < majority {
		o.note("%s acknowledged with %d copies, majority is %d", ref, copies, majority)
	}
}

// watchStores sets what else is told of each write of entries.
func (o *oracle) watchStores(told func(*testMember, []*raft.Log)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stores = told
}

// storing checks I1.
func (o *oracle) storing(m *testMember, bodies *clustertest.Bodies, logs []*raft.Log) {
	o.mu.Lock()
	told := o.stores
	o.mu.Unlock()
	if told != nil {
		told(m, logs)
	}
	for _, l := range logs {
		ref, err := bodyOf(l)
		if err != nil {
			o.violation("%s stores entry %d: %v", m.name, l.Index, err)
			continue
		}
		if floor := m.floor(); ref != nil && !bodies.Here(*ref) && floor < l.Index {
			o.violation("I1: %s stores entry %d without %s, floor %d", m.name, l.Index, ref, floor)
		}
	}
}

func (o *oracle) floorRaised(m *testMember, floor uint64) {
	if greatest := o.c.greatestCommit(); floor > greatest {
		o.violation("%s: floor %d, greatest commit index %d", m.name, floor, greatest)
	}
}

// conclude checks what must hold when all is healed: everybody level, each
// acknowledged message known everywhere, each live body on every voter.
func (o *oracle) conclude() {
	c := o.c
	if !c.level() {
		state := ""
		for _, name := range c.names {
			if n := c.members[name].node(); n != nil {
				state += fmt.Sprintf(" %s: term %d leader %v last %d commit %d floor %d applied %d;", name, n.Term(), n.IsLeader(), n.LastIndex(), n.CommitIndex(), n.Floor(), c.members[name].running().fsm.count())
			}
		}
		o.violation("members are not level:%s", state)
		return
	}
	o.mu.Lock()
	acked := maps.Clone(o.acked)
	voters := o.voters
	o.mu.Unlock()
	for _, name := range c.names {
		p := c.members[name].running()
		if p == nil {
			continue
		}
		for _, ref := range acked {
			if !p.fsm.knows(ref) {
				o.violation("%s does not know the acknowledged %s", name, ref)
			}
		}
	}
	for _, name := range voters {
		p := c.members[name].running()
		if p == nil {
			continue
		}
		missing := 0
		c.eventually(patience, func() bool {
			missing = 0
			_, view := p.fsm.view()
			for _, m := range view {
				if !m.finished && !c.members[name].bodyDisk.Has(m.ref) {
					missing++
				}
			}
			return missing == 0
		})
		if missing > 0 {
			o.violation("%s lacks %d live bodies", name, missing)
		}
	}
}

// clean fails the test for each violation.
func (o *oracle) clean() {
	o.c.t.Helper()
	for _, v := range o.found() {
		o.c.t.Error(v)
	}
	if o.dropped > 0 {
		o.c.t.Errorf("and %d more", o.dropped)
	}
}

// caught fails the test when the oracle saw nothing: it is how a control
// proves that the test can fail.
func (o *oracle) caught(what string) {
	o.c.t.Helper()
	for _, v := range o.found() {
		if strings.Contains(v, what) {
			o.c.t.Logf("found, as it should be: %s", v)
			return
		}
	}
	o.c.t.Errorf("the rule is broken on purpose, and nobody noticed %q", what)
}
