package cluster

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The limits of hydration. How many octets a second it may take is the
// operator's to say (Config.HydrationRate).
const (
	// hydrateBodiesMax and hydrateBytesMax bound the bodies that are fetched at a
	// time, and the octets of them in memory, unless it is a single body.
	hydrateBodiesMax = 8
	hydrateBytesMax  = 64 * mail.MiB
	// hydrateEvery is how often a node looks whether something happened by which
	// it may lack bodies.
	hydrateEvery = time.Second
	// hydrateAgain is how often it counts without any such sign.
	hydrateAgain = 10 * time.Minute
	// hydrateRest is how long a node does not count after it has, in times of what
	// the count took: where signs come without end, counting takes a twentieth of
	// one processor at most, however long the queue is.
	hydrateRest = 20
	// hydrateListMax is how many missing bodies are remembered by name. Up to so
	// many are fetched, and tried again, without another look at the queue.
	hydrateListMax = 10_000
	// After a pass in which something failed the next one comes so much later,
	// doubled each time.
	hydrateRetryMin = 5 * time.Second
	hydrateRetryMax = time.Minute
	// hydrateLogEvery is how often the progress is logged.
	hydrateLogEvery = 30 * time.Second
)

// signs are counts that only grow, and at least one of them does whenever this
// node may have come to lack the body of a live message.
type signs struct {
	exempt      uint64 // entries that were appended without their body
	exemptIndex uint64 // the greatest of their indices
	restores    uint64 // snapshots that replaced the queue
	foundBad    uint64 // bodies that were held and turned out damaged
}

// A hydrator gets the bodies of live messages that this node lacks, from the
// other nodes, in the background: it was away when they came, and has since
// appended their entries as committed ones; or it restored a snapshot; or its
// copy was found damaged. Without it a message would stay at the copies that it
// had then.
//
// The oldest come first, as in delivery. What was fetched is on stable storage,
// so a restart goes on where the process ended; within a body a fetch goes on
// where the connection broke.
type hydrator struct {
	log     *slog.Logger
	bodies  *bodies
	replica *replica
	// ready says whether the queue is known as far as it must be: until the log
	// has been applied as far as it once was, the queue may list messages that
	// were finished, and freed everywhere, long ago.
	ready func() bool
	signs func() signs
	// full reports whether this node's disk takes no more bodies.
	full func() bool
	// servers lists the servers of the cluster, this node aside: whoever is not seen
	// now may still have what nobody else has.
	servers func() []string
	// hold has a message held because no server has a good copy of its body. It may
	// be called again.
	hold     func(context.Context, mail.BodyRef)
	now      func() time.Time // for people
	throttle *throttle
	memory   *byteBudget
	load     peerLoad
	absent   absences

	mu sync.Mutex
	// counted is under which signs missing was last counted, and complete says
	// that everything which those signs are about had been applied by then.
	counted   signs
	complete  bool
	countedAt time.Time // zero: never
	wholeAt   time.Time // when the whole queue was counted; zero: never
	countedTo fsm.Index // what was accepted up to here was counted
	restUntil time.Time // there is no count before
	// Invariant: missing and octets are what the last count found, less what has
	// been got, or is not needed any more, since.
	missing int
	octets  mail.ByteSize
	report  peer.Hydration // what was done since the start, and what went wrong
	meter   rateMeter
	// todo names what is missing, the oldest first, as far as hydrateListMax goes.
	// It belongs to run alone.
	todo []mail.BodyRef
}

// errNoSpace: the disk of this node takes no more bodies of other nodes.
var errNoSpace = errors.New("the disk of this node is nearly full")

// run hydrates until ctx ends.
func (h *hydrator) run(ctx context.Context) {
	tick := time.NewTicker(hydrateEvery)
	defer tick.Stop()
	var notBefore time.Time
	pause := hydrateRetryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if time.Now().Before(notBefore) || !h.ready() || !h.due() {
			continue
		}
		if h.pass(ctx) {
			pause, notBefore = hydrateRetryMin, time.Time{}
			continue
		}
		notBefore = time.Now().Add(pause)
		pause = min(2*pause, hydrateRetryMax)
	}
}

// due reports whether there is something to fetch or to count.
func (h *hydrator) due() bool {
	stale := h.stale()
	h.mu.Lock()
	defer h.mu.Unlock()
	if stale {
		return !time.Now().Before(h.restUntil)
	}
	return h.missing > 0
}

// stale reports whether more may be missing than the last count found, or more
// than todo names.
func (h *hydrator) stale() bool {
	s := h.signs()
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.complete || s != h.counted || time.Since(h.wholeAt) >= hydrateAgain || h.missing > len(h.todo)
}

// pass fetches what is missing, after counting it where that is due. It reports
// false if something is still missing that was tried.
func (h *hydrator) pass(ctx context.Context) bool {
	began := time.Now()
	if h.stale() {
		h.count()
	}
	missing := h.left()
	if missing == 0 {
		h.absent.sweep(began)
		return true
	}
	h.log.Info("bodies are missing here", "bodies", missing)
	refs := slices.Values(h.todo)
	if missing > len(h.todo) {
		refs = h.replica.liveBodies(func(ref mail.BodyRef) bool { return !h.bodies.Held(ref) })
	}
	got, failed := h.fetchAll(ctx, refs)
	if ctx.Err() != nil {
		return false
	}
	h.todo = failed
	h.absent.sweep(began)
	for _, one := range h.absent.list() {
		if one.nowhere() && one.asked.Sub(one.since) >= lostAfter {
			h.hold(ctx, one.ref)
		}
	}
	h.log.Info("bodies fetched that were missing here", "fetched", got, "left", h.left(), "took", time.Since(began).Round(time.Second).String())
	return len(failed) == 0
}

// fetchAll fetches bodies, a few at a time. It returns how many are dealt with,
// and which are not, as far as hydrateListMax goes.
func (h *hydrator) fetchAll(ctx context.Context, refs iter.Seq[mail.BodyRef]) (got int, failed []mail.BodyRef) {
	work := make(chan mail.BodyRef)
	var workers sync.WaitGroup
	var lock sync.Mutex
	for range hydrateBodiesMax {
		workers.Go(func() {
			for ref := range work {
				ok := h.get(ctx, ref)
				lock.Lock()
				if ok {
					got++
				} else if len(failed) < hydrateListMax {
					failed = append(failed, ref)
				}
				lock.Unlock()
			}
		})
	}
	logged := time.Now()
	for ref := range refs {
		if ctx.Err() != nil {
			break
		}
		work <- ref
		if time.Since(logged) >= hydrateLogEvery {
			logged = time.Now()
			h.logProgress()
		}
	}
	close(work)
	workers.Wait()
	return got, failed
}

// count looks at every live body, and makes todo and missing what it found.
func (h *hydrator) count() {
	began := time.Now()
	// The signs first: what happens after this look changes them.
	s := h.signs()
	view := h.replica.view()
	from, todo, missing, octets := h.since(s)
	for _, ref := range view.LiveBodies(from) {
		if h.bodies.Held(ref) {
			continue
		}
		missing++
		octets += ref.Size
		if len(todo) < hydrateListMax {
			todo = append(todo, ref)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.todo = todo
	h.counted, h.complete, h.countedAt = s, uint64(view.Applied()) >= s.exemptIndex, time.Now()
	h.countedTo = view.Applied()
	if from == 0 {
		h.wholeAt = h.countedAt
	}
	h.restUntil = h.countedAt.Add(hydrateRest * h.countedAt.Sub(began))
	h.missing, h.octets = missing, octets
}

// since returns from which entry on a count has to look under these signs, zero
// for the whole queue, and what is known to be missing before it.
//
// On a node that falls behind a little, entries come committed before their
// bodies do, all the time; and they are new ones: an entry that has been applied
// is not appended again. To count the whole queue for each of them would take a
// twentieth of a processor once the queue is long.
func (h *hydrator) since(s signs) (from fsm.Index, todo []mail.BodyRef, missing int, octets mail.ByteSize) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.restores != h.counted.restores || s.foundBad != h.counted.foundBad ||
		h.missing != len(h.todo) || time.Since(h.wholeAt) >= hydrateAgain {
		return 0, nil, 0, 0
	}
	return h.countedTo + 1, h.todo, h.missing, h.octets
}

// left returns how many bodies are missing.
func (h *hydrator) left() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.missing
}

// get fetches one body, and reports false where it could not.
func (h *hydrator) get(ctx context.Context, ref mail.BodyRef) bool {
	if h.bodies.Held(ref) || !h.live(ref) {
		h.settle(ref, 0)
		return true
	}
	err := errNoSpace
	if !h.full() {
		err = h.fetch(ctx, ref)
	}
	if err == nil {
		h.settle(ref, ref.Size)
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	if !h.live(ref) { // finished, and freed by the others, while we asked
		h.settle(ref, 0)
		return true
	}
	h.note(err)
	h.absent.note(ref, err, time.Now())
	h.log.Debug("body not fetched", "queue_id", ref.ID, "cause", err)
	return false
}

func (h *hydrator) live(ref mail.BodyRef) (live bool) {
	h.replica.read(func(s *fsm.State) { live = s.Live(ref.ID) })
	return live
}

// fetch asks the other nodes, those that are seen and asked least at present
// first. A fetchError is the answer of every server of the cluster.
func (h *hydrator) fetch(ctx context.Context, ref mail.BodyRef) error {
	release, err := h.memory.take(ctx, ref.Size)
	if err != nil {
		return err
	}
	defer release()
	if err := h.throttle.wait(ctx, ref.Size); err != nil {
		return err
	}
	failed := &fetchError{ref: ref}
	asked := []string{h.bodies.self}
	for _, names := range []func() []string{h.bodies.names, h.servers} {
		for {
			name, done := h.load.pick(names(), asked)
			if name == "" {
				break
			}
			asked = append(asked, name)
			err := h.bodies.fetchFrom(ctx, ref, name, peer.Background)
			done()
			if err == nil || errors.Is(err, errNotStored) || ctx.Err() != nil {
				return err
			}
			failed.add(name, err)
		}
	}
	return failed
}

// settle takes a body off what is missing: it is here, after so many octets were
// fetched, or nobody needs it any more.
func (h *hydrator) settle(ref mail.BodyRef, fetched mail.ByteSize) {
	h.absent.forget(ref)
	h.mu.Lock()
	defer h.mu.Unlock()
	// A count that came in between may have left it out already.
	if h.missing > 0 {
		h.missing--
		h.octets = max(0, h.octets-ref.Size)
	}
	if fetched > 0 || ref.Size == 0 {
		h.report.Fetched++
		h.report.FetchedBytes += fetched
		h.meter.add(time.Now(), fetched)
	}
}

func (h *hydrator) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report.LastError, h.report.LastErrorUnix = err.Error(), h.now().Unix()
}

// Report returns how far the hydration is, and an index up to which what it says
// is true: Known with nothing missing means that every body is here that is live
// at that index.
func (h *hydrator) Report() (fsm.Index, peer.Hydration) {
	// In this order: a sign is given before what it is about can be applied.
	at := h.replica.appliedIndex()
	s := h.signs()
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.report
	r.Known = !h.countedAt.IsZero() && h.complete && s == h.counted
	r.Missing, r.MissingBytes = uint64(h.missing), h.octets
	r.Rate = h.meter.rate(time.Now())
	r.NotFound, r.Lost, r.WaitingFor = h.absent.summary()
	return at, r
}

func (h *hydrator) logProgress() {
	_, r := h.Report()
	left := "unknown"
	if r.Rate > 0 {
		left = (time.Duration(r.MissingBytes/r.Rate) * time.Second).String()
	}
	h.log.Info("fetching missing bodies", "missing", r.Missing, "missing_bytes", int64(r.MissingBytes),
		"rate", int64(r.Rate), "left", left, "last_error", r.LastError)
}

// upToDate reports whether the queue is known here as far as this node once
// knew it, and is caught up with a leader: what it lists as live is, but for
// moments.
func (m *Member) upToDate() bool {
	return m.current.Load() && uint64(m.replica.appliedIndex()) >= m.node.FloorAtStart()
}

// signs returns what tells the hydrator to count anew.
func (m *Member) signs() signs {
	stats := m.node.Stats()
	return signs{
		exempt: stats.Exempt, exemptIndex: stats.ExemptIndex,
		restores: m.replica.restores.Load(), foundBad: m.spool.FoundBad(),
	}
}
