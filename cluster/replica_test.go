package cluster

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const replicaDomain mail.Domain = "example.org"

func quietReplica() *replica { return newReplica(slog.New(slog.DiscardHandler)) }

// entry is an entry's data for an action.
func entry(t testing.TB, a fsm.Action) []byte {
	t.Helper()
	return encoded(t, fsm.Command{Node: "n1", Action: a})
}

func acceptOf(t testing.TB, n int) (fsm.Accept, mail.BodyRef) {
	t.Helper()
	path, err := mail.ParseForwardPath("dora@example.org", false)
	if err != nil {
		t.Fatal(err)
	}
	ref := mail.NewBody([]byte{byte(n), '\r', '\n'}).Ref(idOf(n))
	return fsm.Accept{Body: ref, Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: replicaDomain}}}}, ref
}

// An entry that this version does not understand ends the replica for good: it
// applies nothing behind it, whatever it is, and takes no snapshot of a state
// that other nodes do not have.
func TestReplicaStopsAtWhatItDoesNotUnderstand(t *testing.T) {
	r := quietReplica()
	domain := entry(t, fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}})
	if got, ok := r.Apply(1, domain, nil).(applied); !ok || got.result.Verdict != fsm.Done {
		t.Fatalf("%+v", got)
	}
	if _, ok := r.Apply(2, []byte{0xff, 0xff, 0xff}, nil).(error); !ok {
		t.Fatal("garbage was applied")
	}
	select {
	case <-r.halted:
	default:
		t.Error("nobody is told that the replica stopped")
	}
	if err, ok := r.Apply(3, entry(t, fsm.Tick{Elapsed: 1000}), nil).(error); !ok || !errors.Is(err, errReplicaStopped) {
		t.Error("an entry behind it was applied")
	}
	if r.appliedIndex() != 1 {
		t.Errorf("applied %d, want 1", r.appliedIndex())
	}
	if _, err := r.Snapshot(); err == nil {
		t.Error("a snapshot was taken of a replica that stopped")
	}
	if r.err() == nil {
		t.Error("no reason is given")
	}
}

// The body that the append rule watched over must be the one that the command
// names. Where it is not, every replica skips the entry alike and goes on: no
// message is made that has no body, and none that has another's.
func TestReplicaSkipsAnEntryWhoseBodyIsNotTheCommands(t *testing.T) {
	accept, ref := acceptOf(t, 1)
	_, other := acceptOf(t, 2)
	resized := ref
	resized.Size++
	for name, c := range map[string]struct {
		action fsm.Action
		named  *mail.BodyRef
	}{
		"none named":        {accept, nil},
		"another":           {accept, &other},
		"another size":      {accept, &resized},
		"named by a tick":   {fsm.Tick{Elapsed: 1000}, &ref},
		"named by a remove": {fsm.Remove{ID: ref.ID}, &ref},
	} {
		t.Run(name, func(t *testing.T) {
			r := quietReplica()
			r.Apply(1, entry(t, fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}), nil)
			got, ok := r.Apply(2, entry(t, c.action), c.named).(applied)
			if !ok || got.result.Verdict != fsm.Invalid || got.index != 2 {
				t.Errorf("answered %+v", got)
			}
			view := r.view()
			if view.Totals().Accepted != 0 || view.Now() != 0 || view.Known(ref.ID) {
				t.Errorf("it had an effect: %+v", view.Totals())
			}
			if view.Applied() != 2 {
				t.Errorf("applied %d, want 2: the others count it too", view.Applied())
			}
			if got, ok := r.Apply(3, entry(t, accept), &ref).(applied); !ok || got.result.Verdict != fsm.Done {
				t.Errorf("the replica does not go on: %+v", got)
			}
		})
	}
}

// A view stays as it was while the queue goes on, and a snapshot restores what
// it showed.
func TestReplicaViewsAndSnapshotsStandStill(t *testing.T) {
	r := quietReplica()
	r.Apply(1, entry(t, fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}), nil)
	one, ref := acceptOf(t, 1)
	r.Apply(2, entry(t, one), &ref)
	before := r.view()
	snapshot, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	two, other := acceptOf(t, 2)
	r.Apply(3, entry(t, two), &other)
	r.Apply(4, entry(t, fsm.Remove{ID: ref.ID}), nil)
	if before.Applied() != 2 || before.Known(other.ID) || !before.Live(ref.ID) {
		t.Error("an old view changed")
	}
	var written bytes.Buffer
	if _, err := snapshot.WriteTo(&written); err != nil {
		t.Fatal(err)
	}
	restored := quietReplica()
	progress := restored.progressed.wait()
	if err := restored.Restore(&written); err != nil {
		t.Fatal(err)
	}
	select {
	case <-progress:
	default:
		t.Error("who waits for progress is not woken by a restore")
	}
	if v := restored.view(); v.Applied() != 2 || !v.Live(ref.ID) || v.Known(other.ID) {
		t.Errorf("restored as of %d, want what the snapshot showed", v.Applied())
	}
	if err := quietReplica().Restore(bytes.NewReader([]byte("no snapshot"))); err == nil {
		t.Error("garbage was restored")
	}
}
