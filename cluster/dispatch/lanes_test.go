package dispatch

import (
	"encoding/binary"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A list is due mail in few letters: "s" is a message of the slow lane, any other
// letter another one. The entry of each is its position, from one on. It counts looks.
type list struct {
	letters string
	gone    map[int]bool // positions that are not due any more
	looks   int
}

func (l *list) at(position int) fsm.DueMessage {
	var id mail.QueueID
	binary.BigEndian.PutUint64(id[:], uint64(position))
	return fsm.DueMessage{ID: id, Entry: fsm.Index(position), Slow: l.letters[position-1] == 's'}
}

func (l *list) walk(from, step int, yield func(fsm.DueMessage) bool) {
	for p := from; p >= 1 && p <= len(l.letters); p += step {
		if l.gone[p] {
			continue
		}
		l.looks++
		if !yield(l.at(p)) {
			return
		}
	}
}

func (l *list) due() dueMail {
	return dueMail{
		from: func(entry fsm.Index) iter.Seq[fsm.DueMessage] {
			return func(yield func(fsm.DueMessage) bool) { l.walk(max(1, int(min(entry, 1<<40))), 1, yield) }
		},
		newest: func(yield func(fsm.DueMessage) bool) { l.walk(len(l.letters), -1, yield) },
	}
}

// fill returns the positions of what is planned.
func (l *list) fill(at Lanes, n int) ([]int, Lanes) {
	ids, next := at.fill(n, l.due())
	positions := []int{}
	for _, id := range ids {
		positions = append(positions, int(binary.BigEndian.Uint64(id[:])))
	}
	return positions, next
}

func TestPlacesOfALease(t *testing.T) {
	for name, c := range map[string]struct {
		due  string
		at   Lanes
		n    int
		want []int
		next Lanes
	}{
		"nothing is due":                    {"", Lanes{}, 5, []int{}, Lanes{}},
		"one message":                       {"o", Lanes{}, 5, []int{1}, Lanes{place: 1}},
		"the first are the oldest":          {"oooooooo", Lanes{}, 4, []int{1, 2, 3, 4}, Lanes{place: 4}},
		"each fifth is the newest":          {"oooooooooooo", Lanes{}, 10, []int{1, 2, 3, 4, 12, 5, 6, 7, 8, 11}, Lanes{place: 10}},
		"the count goes on":                 {"oooooooo", Lanes{place: 4}, 2, []int{8, 1}, Lanes{place: 6}},
		"all of a short queue":              {"oooooo", Lanes{}, 64, []int{1, 2, 3, 4, 6, 5}, Lanes{place: 6}},
		"what is slow is passed over":       {"ssoooooo", Lanes{}, 5, []int{3, 4, 5, 6, 8}, Lanes{place: 5}},
		"at the new end, too":               {"oooooosss", Lanes{}, 5, []int{1, 2, 3, 4, 6}, Lanes{place: 5}},
		"one of sixteen is slow":            {"ssoooooo", Lanes{place: 14}, 3, []int{8, 1, 3}, Lanes{place: 17, slow: 2}},
		"the turn of the slow passes round": {"ssoooooo", Lanes{place: 15, slow: 2}, 1, []int{2}, Lanes{place: 16, slow: 3}},
		"and round again":                   {"ssoooooo", Lanes{place: 15, slow: 3}, 1, []int{1}, Lanes{place: 16, slow: 2}},
		"slow and newest: slow":             {"sooooooo", Lanes{place: 79}, 1, []int{1}, Lanes{place: 0, slow: 2}},
		"no slow one: the oldest":           {"oooo", Lanes{place: 15}, 2, []int{1, 2}, Lanes{place: 17, slow: 5}},
		"nothing but slow ones":             {"sssss", Lanes{}, 4, []int{1, 2, 3, 4}, Lanes{place: 4, slow: 5}},
		"nothing else left":                 {"sssoo", Lanes{}, 64, []int{4, 5, 1, 2, 3}, Lanes{place: 5, slow: 6}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &list{letters: c.due}
			got, next := l.fill(c.at, c.n)
			if !slices.Equal(got, c.want) {
				t.Errorf("planned %v, want %v", got, c.want)
			}
			if next.place != c.next.place || next.slow != c.next.slow && strings.Contains(c.due, "s") {
				t.Errorf("goes on at %+v, want %+v", next, c.next)
			}
		})
	}
}

// Where both ends of a queue are slow mail, and longer than a plan looks, the messages
// between them are found in the end, and no plan looks at more for it.
func TestPlansGetPastSlowMail(t *testing.T) {
	const front = 2000
	for name, letters := range map[string]string{
		"slow mail in front":     strings.Repeat("s", front) + "o",
		"slow mail on each side": strings.Repeat("s", front) + "o" + strings.Repeat("s", front),
	} {
		l, at := &list{letters: letters}, Lanes{}
		plans := 0
		for ; ; plans++ {
			var got []int
			if got, at = l.fill(at, 8); slices.Contains(got, front+1) {
				break
			}
			if plans > len(letters)/looksMore+1 {
				t.Fatalf("%s: not found in %d plans", name, plans)
			}
		}
		t.Logf("%s: found by plan %d", name, plans+1)
	}
}

// Where nothing of its own kind is in sight from any point, a place goes to the oldest.
func TestPlacesAreNotLeftEmpty(t *testing.T) {
	l := &list{letters: strings.Repeat("s", 1000) + strings.Repeat("o", 500) + strings.Repeat("s", 1000)}
	if got, _ := l.fill(Lanes{slow: 1001}, 4); !slices.Equal(got, []int{1, 2, 3, 4}) {
		t.Errorf("planned %v", got)
	}
}

// Whatever is due: a lease is full where enough is due, nothing is in it twice, the
// looks are bounded, and the lanes have their shares.
func TestPlansAreFullAndBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var letters strings.Builder
		for range rapid.IntRange(0, 8).Draw(t, "runs") {
			letters.WriteString(strings.Repeat(rapid.SampledFrom([]string{"s", "o", "so", "ooooooos"}).Draw(t, "kind"), rapid.IntRange(0, 300).Draw(t, "length")))
		}
		l := &list{letters: letters.String(), gone: map[int]bool{}}
		n := rapid.IntRange(1, 100).Draw(t, "places")
		at := Lanes{
			place: rapid.IntRange(0, placesRound-1).Draw(t, "place"),
			slow:  fsm.Index(rapid.IntRange(0, 3000).Draw(t, "slow")), rove: fsm.Index(rapid.IntRange(0, 3000).Draw(t, "rove")),
		}
		given := 0
		for given < 3*placesRound {
			due := len(l.letters) - len(l.gone)
			l.looks = 0
			planned, next := l.fill(at, n)
			if len(planned) != min(n, due) {
				t.Fatalf("%d planned, of %d that are due, for %d places", len(planned), due, n)
			}
			if most := 4*(n+looksMore) + 2*n; l.looks > most {
				t.Fatalf("%d looks for %d places, want at most %d", l.looks, n, most)
			}
			if next.place != (at.place+len(planned))%placesRound {
				t.Fatalf("from place %d to %d with %d", at.place, next.place, len(planned))
			}
			for _, p := range planned {
				if l.gone[p] {
					t.Fatalf("%d is planned twice, or is not due", p)
				}
				l.gone[p] = true
			}
			if len(planned) == 0 {
				return
			}
			at = next
			given += len(planned)
		}
	})
}

// Leases of any size share the places out alike: in each round of them the newest have
// no fewer than a fifth, less what the slow lane takes of it, and the slow lane has its
// sixteenth.
func TestSharesOfTheLanes(t *testing.T) {
	for _, n := range []int{1, 3, 8, 64, placesRound} {
		l := &list{letters: strings.Repeat("s", 80) + strings.Repeat("o", 2000), gone: map[int]bool{}}
		at := Lanes{}
		slow, newest, oldest := 0, 0, 0
		for range 4 * placesRound / n {
			var planned []int
			planned, at = l.fill(at, n)
			for _, p := range planned {
				l.gone[p] = true
				switch {
				case p <= 80:
					slow++
				case p > 1080:
					newest++
				default:
					oldest++
				}
			}
		}
		total := 4 * placesRound / n * n
		if slow != total/slowEvery || newest < total/newestEvery-total/placesRound-1 || newest > total/newestEvery || slow+newest+oldest != total {
			t.Errorf("leases of %d: of %d places %d are slow, %d newest, %d oldest", n, total, slow, newest, oldest)
		}
	}
}

func TestPlanIsBounded(t *testing.T) {
	q := newQueue(t)
	var all []mail.QueueID
	for n := range 10 {
		all = append(all, q.accept(t, n))
	}
	for _, c := range []struct{ wanted, limit, planned int }{
		{4, 64, 4}, {64, 4, 4}, {64, 64, 10}, {0, 64, 0}, {-1, 64, 0}, {64, 0, 0}, {64, -1, 0}, {1 << 40, 3, 3},
	} {
		got, _ := Plan(q.View(), Request{Holder: "n1", Domain: domain, Max: c.wanted}, c.limit, Lanes{})
		if len(got) != c.planned || !slices.Equal(got[:min(4, c.planned)], all[:min(4, c.planned)]) {
			t.Errorf("%d wanted, at most %d: planned %v of %v", c.wanted, c.limit, got, all)
		}
	}
	if got, _ := Plan(q.View(), Request{Holder: "n1", Domain: "other.example", Max: 5}, 5, Lanes{}); len(got) != 0 {
		t.Errorf("planned %v for a domain without mail", got)
	}
	// What is held or leased is passed over.
	q.apply(t, fsm.Hold{ID: all[0]})
	q.apply(t, fsm.GrantLeases{Holder: "n2", Domain: domain, Messages: all[2:4]})
	want := []mail.QueueID{all[1], all[4], all[5]}
	if got, _ := Plan(q.View(), Request{Holder: "n1", Domain: domain, Max: 3}, 64, Lanes{}); !slices.Equal(got, want) {
		t.Errorf("planned %v, want %v", got, want)
	}
}

// refuse has the next hop put messages off until they are in the slow lane, and due.
func (q *queue) refuse(t testing.TB, ids []mail.QueueID) {
	t.Helper()
	for range 4 {
		for batch := range slices.Chunk(ids, 1000) {
			granted := q.apply(t, fsm.GrantLeases{Holder: "n9", Domain: domain, Messages: batch})
			if len(granted.Messages) != len(batch) {
				t.Fatalf("%d of %d are granted", len(granted.Messages), len(batch))
			}
			q.report(t, fsm.Token(q.index), batch, func(mail.QueueID) bool { return false })
		}
		q.apply(t, fsm.FlushDomain{Name: domain})
	}
	for _, id := range ids[:1] {
		if m, _ := q.View().Message(id); !m.Parts[0].Slow() {
			t.Fatalf("%s is not in the slow lane: %+v", id, m.Parts[0])
		}
	}
}

// report says of each message of a lease whether the next hop took it, or put it off.
func (q *queue) report(t testing.TB, token fsm.Token, ids []mail.QueueID, takes func(mail.QueueID) bool) {
	t.Helper()
	r := fsm.RecordOutcomes{Holder: "n9", Token: token}
	for _, id := range ids {
		o := fsm.RecipientOutcome{Outcome: fsm.Deferred, Tried: true, Reply: mail.Reply{Code: 451}}
		if takes(id) {
			o = fsm.RecipientOutcome{Outcome: fsm.Delivered, Tried: true, Reply: mail.Reply{Code: 250}}
		}
		r.Messages = append(r.Messages, fsm.MessageOutcomes{ID: id, Recipients: []fsm.RecipientOutcome{o}})
	}
	q.apply(t, r)
}

// A message that is accepted now is in the very next lease, though 100,000 are due,
// and stands near its beginning.
//
// It holds this defect: new mail waited behind the whole queue of an outage.
func TestRegressionNewMailPassesALongQueue(t *testing.T) {
	messages := 100_000
	if testing.Short() {
		messages = 5000
	}
	q := newQueue(t)
	first := q.accept(t, 0)
	for n := 1; n < messages; n++ {
		q.accept(t, n)
	}
	for place := range placesRound {
		id := q.accept(t, messages+place)
		got, _ := Plan(q.View(), Request{Holder: "n9", Domain: domain, Max: 64}, 64, Lanes{place: place})
		// A place of the newest may be the slow lane's, so it may be the second one.
		if at := slices.Index(got, id); at < 0 || at >= 2*newestEvery {
			t.Fatalf("from place %d: it stands at %d", place, at)
		}
		if at := slices.Index(got, first); at < 0 || at > 2 {
			t.Fatalf("from place %d: the oldest stands at %d", place, at)
		}
		q.apply(t, fsm.GrantLeases{Holder: "n9", Domain: domain, Messages: []mail.QueueID{id}})
		q.report(t, fsm.Token(q.index), []mail.QueueID{id}, func(mail.QueueID) bool { return true })
	}
}

// A next hop that never takes some messages, whose waits end all the time, while new
// mail keeps coming: each lease has the oldest of the old queue, new mail passes it, and
// each of those messages is tried again and again.
//
// It holds this defect: 300 messages that a primary kept putting off could fill every
// lease.
func TestRegressionNoLaneStarves(t *testing.T) {
	const refused, old, perLease, perRound, rounds = 300, 2000, 16, 2, 900
	q := newQueue(t)
	q.apply(t, fsm.PutDomain{Domain: fsm.Domain{
		Name: domain, Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}},
		Schedule: fsm.Schedule{RetryMin: 60_000, RetryMax: 60_000, Lifetime: 30 * 24 * 3_600_000},
	}})
	never := make(map[mail.QueueID]bool)
	var stuck, backlog []mail.QueueID
	for n := range refused {
		id := q.accept(t, n)
		never[id] = true
		stuck = append(stuck, id)
	}
	for n := range old {
		backlog = append(backlog, q.accept(t, refused+n))
	}
	q.refuse(t, stuck)

	lanes := Lanes{}
	tried := make(map[mail.QueueID]int)    // how often
	ended := make(map[mail.QueueID]int)    // in which round it was delivered
	accepted := make(map[mail.QueueID]int) // in which round
	accepts := refused + old
	drained, before := 0, 0 // after so many rounds; what was tried of the slow lane meanwhile
	for round := range rounds {
		oldest := slices.IndexFunc(backlog, func(id mail.QueueID) bool { _, ok := ended[id]; return !ok })
		if oldest < 0 && drained == 0 {
			drained = round
		}
		for range perRound {
			accepted[q.accept(t, accepts)] = round
			accepts++
		}
		planned, next := Plan(q.View(), Request{Holder: "n9", Domain: domain, Max: perLease}, perLease, lanes)
		granted := q.apply(t, fsm.GrantLeases{Holder: "n9", Domain: domain, Messages: planned})
		if len(granted.Messages) != len(planned) {
			t.Fatalf("%d of %d are granted", len(granted.Messages), len(planned))
		}
		lanes = next
		q.report(t, fsm.Token(q.index), planned, func(id mail.QueueID) bool {
			tried[id]++
			switch {
			case !never[id]:
				ended[id] = round
			case drained == 0:
				before++
			}
			return !never[id]
		})
		if oldest >= 0 && round >= refused/looksMore+1 { // by then it has looked past them
			if _, ok := ended[backlog[oldest]]; !ok {
				t.Fatalf("round %d has not the oldest of the old queue, message %d", round, oldest)
			}
		}
		q.apply(t, fsm.Tick{Elapsed: 60_000})
	}
	// The old queue has 12 of the 16 places at least.
	if before < drained-1 {
		t.Errorf("of %d leases before that, %d had one that is never taken", drained, before)
	}
	if most := old/12 + 1; drained == 0 || drained > most {
		t.Errorf("the old queue took %d rounds (0: more than %d), want at most %d", drained, rounds, most)
	}
	for id, round := range accepted {
		if at, ok := ended[id]; !ok || at > round+1 {
			t.Errorf("a message accepted in round %d was delivered in round %d (%v)", round, at, ok)
		}
	}
	// One of 16 places is theirs while others are due, and more when not: each has its
	// turn within as many rounds as there are of them.
	for _, id := range stuck {
		if tried[id] < rounds/refused {
			t.Errorf("%s was tried %d times in %d rounds", id, tried[id], rounds)
		}
	}
	t.Logf("%d old messages in %d rounds, each of %d slow ones tried at least %d times", old, drained, refused, rounds/refused)
}

// A lease of one message at a time shares its places out too; and the message that a
// next hop is tried with is of the oldest that are not slow, each time.
func TestPullsShareTheLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		var all []mail.QueueID
		for n := range 60 {
			all = append(all, q.accept(t, n))
		}
		q.refuse(t, all[:2])
		d := New(Config{Queue: q, Log: slog.New(slog.DiscardHandler), LeaseDuration: time.Minute, LeaseMargin: time.Second, LeaseBatchMax: 8, TickEvery: time.Second})
		pull := func(connections int, seen Feedback) int {
			t.Helper()
			g, err := d.Pull(t.Context(), Request{Holder: "n1", Domain: domain, Max: 1, Connections: connections, Seen: seen})
			if err != nil || len(g.Messages) != 1 {
				t.Fatalf("%+v %v", g, err)
			}
			return slices.Index(all, g.Messages[0])
		}
		for n := range 20 {
			if got := pull(1, Feedback{}); got != 2+n {
				t.Errorf("trial %d is message %d", n, got)
			}
		}
		want := []int{22, 23, 24, 25, 59, 26, 27, 28, 29, 58, 30, 31, 32, 33, 57, 0, 34, 35, 36, 56}
		seen := Feedback{Token: 1, Answered: 1}
		var got []int
		for range want {
			got = append(got, pull(1, seen))
			seen = Feedback{}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pulled %v, want %v", got, want)
		}
	})
}

// BenchmarkPlan says what a plan of 64 places costs with half a million due.
func BenchmarkPlan(b *testing.B) {
	const messages = 500_000
	q := newQueue(b)
	var all []mail.QueueID
	for n := range messages {
		all = append(all, q.accept(b, n))
	}
	request := Request{Holder: "n1", Domain: domain, Max: 64}
	plan := func(b *testing.B) {
		view, at := q.View(), Lanes{}
		for b.Loop() {
			_, at = Plan(view, request, 64, at)
		}
	}
	b.Run("the oldest alone", func(b *testing.B) { // as it was before there were lanes
		view := q.View()
		for b.Loop() {
			planned := make([]mail.QueueID, 0, 64)
			for id := range view.Due(domain) {
				if planned = append(planned, id); len(planned) == 64 {
					break
				}
			}
		}
	})
	b.Run("none slow", plan)
	for _, front := range []int{1000, 20_000} {
		q.refuse(b, all[:front])
		b.Run(fmt.Sprintf("the oldest %d slow", front), plan)
	}
}
