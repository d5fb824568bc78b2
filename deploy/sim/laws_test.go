package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/fsm"
)

// Reigns are who led in which term, by what the nodes log.
type reigns struct {
	mu    sync.Mutex
	by    map[uint64]string
	twice []string
}

// handler wraps the log of nodes, each of which says its name in an attribute "node".
func (r *reigns) handler(next slog.Handler) slog.Handler { return reignHandler{Handler: next, r: r} }

type reignHandler struct {
	slog.Handler
	r    *reigns
	node string
}

func (h reignHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h reignHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "node" {
			h.node = a.Value.String()
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h reignHandler) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Message == "leading" {
		rec.Attrs(func(a slog.Attr) bool {
			if a.Key == "term" {
				h.r.note(a.Value.Uint64(), h.node)
			}
			return true
		})
	}
	return h.Handler.Handle(ctx, rec)
}

func (r *reigns) note(term uint64, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[uint64]string{}
	}
	// The same node, too: it has forgotten that it led.
	if before, ok := r.by[term]; ok {
		r.twice = append(r.twice, fmt.Sprintf("%s and %s led in term %d", before, node, term))
	}
	r.by[term] = node
}

func (r *reigns) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, what := range r.twice {
		t.Error(what)
	}
	if len(r.by) == 0 {
		t.Error("nobody ever led: nothing was shown")
	}
}

// resumeTime is how long after the last fault a sender gets a 250, with all nodes up.
const resumeTime = 30 * time.Second

// resumes fails the test where a letter that is tried again and again gets no 250 in
// time. Where senders are told, it is one to a recipient that there is not.
func (w *World) resumes(ctx context.Context, t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, resumeTime)
	defer cancel()
	letters := letter.New(letter.Options{Seed: ^w.seed, Domains: []string{string(relayDomains[0])}, Sizes: letter.Size4K, BigAt: -1, RefusedEvery: min(1, w.refusedEvery())})
	stats, err := w.sendWith(ctx, sender.Options{Count: 1, Sessions: 1, Pause: time.Second, Letter: letters.Letter})
	if err != nil || stats.Letters != 1 {
		t.Errorf("no 250 within %v of the last fault: %+v, %v", resumeTime, stats, err)
	}
}

// takesMailTime is how long after the last fault every node takes mail.
const takesMailTime = 2 * time.Minute

// allTakeMail fails the test where a node takes none, though the others do.
func (w *World) allTakeMail(ctx context.Context, t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, takesMailTime)
	defer cancel()
	for _, name := range w.names {
		letters := letter.New(letter.Options{Seed: w.seed, Run: fmt.Sprintf("last%d%s", w.seed, name), Domains: []string{string(relayDomains[0])}, Sizes: letter.Size4K, BigAt: -1})
		stats, err := w.sendWith(ctx, sender.Options{Targets: []string{name + ":" + smtpPort}, Count: 1, Sessions: 1, Pause: time.Second, Letter: letters.Letter})
		if err != nil || stats.Letters != 1 {
			t.Errorf("%s takes no mail within %v of the last fault: %+v, %v", name, takesMailTime, stats, err)
		}
	}
}

// leftTime is how long the octets of what has ended may stay on a node's disk: those of
// a body that no entry ever named are kept for an hour.
const leftTime = 90 * time.Minute

// atRest checks what holds when everything is delivered: all nodes have the same queue
// at the same entry, without a contradiction in it, and keep no body. gone names a node
// whose disk was lost for good, "" where none was.
func (w *World) atRest(ctx context.Context, t *testing.T, gone string) {
	t.Helper()
	names := without(w.names, gone)
	all := w.node(names[0]).node.Member().Compare(ctx)
	copies := slices.DeleteFunc(slices.Clone(all), func(c cluster.Copy) bool { return string(c.Server) == gone })
	for _, c := range copies {
		if c.Err != nil || c.Index != copies[0].Index || c.Sum != copies[0].Sum {
			t.Errorf("the nodes' queues differ, or are not told: %+v", all)
			break
		}
	}
	if len(copies) != len(names) {
		t.Errorf("%d copies of the queue: %+v", len(copies), all)
	}
	for _, name := range names {
		n := w.node(name).node
		view := n.Member().View()
		if err := view.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		deadline := time.Now().Add(leftTime)
		for n.Status(ctx).Spool.Bodies > 0 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Second)
		}
		if left := n.Status(ctx).Spool.Bodies; left > 0 {
			t.Errorf("%s keeps %d bodies %v after the last message has ended", name, left, leftTime)
		}
		for _, d := range relayDomains {
			if c := view.Counts(d); c.Leased > 0 {
				t.Errorf("%s: %d messages of %s are leased, and none is queued", name, c.Leased, d)
			}
		}
	}
}

// TestCopiesThatDiffer: a node whose queue is not that of the others is found.
func TestCopiesThatDiffer(t *testing.T) {
	tell(t, 811, func(t *testing.T, s *story) {
		s.begin()
		s.mustGive("n1", letterTo{to: "dora@example.org", text: "the same everywhere"}, thenVanish)
		for _, from := range nodeNames {
			copies := s.node(from).node.Member().Compare(s.ctx)
			for _, c := range copies {
				if c.Err != nil || c.Index == 0 || c.Messages != 1 || c.Sum != copies[0].Sum || c.Index != copies[0].Index {
					t.Errorf("seen from %s: %+v", from, copies)
				}
			}
		}
		// Under load, too: the entry is one that all have still before them.
		busy, done := context.WithCancel(s.ctx)
		var senders sync.WaitGroup
		for range 8 {
			senders.Go(func() {
				for busy.Err() == nil {
					_ = s.Do(busy, fsm.FlushDomain{Name: relayDomains[0]})
				}
			})
		}
		for range 5 {
			copies := s.node("n2").node.Member().Compare(s.ctx)
			for _, c := range copies {
				if c.Err != nil || c.Sum != copies[0].Sum || c.Index != copies[0].Index {
					t.Errorf("under load: %+v", copies)
				}
			}
		}
		done()
		senders.Wait()
		// One that is away tells nothing, and the others are still compared.
		s.Kill("n3")
		copies := s.node("n1").node.Member().Compare(s.ctx)
		if len(copies) != 3 || copies[2].Err == nil || copies[0].Err != nil || copies[1].Err != nil || copies[0].Sum != copies[1].Sum {
			t.Errorf("with n3 away: %+v", copies)
		}
	})
}
