package cluster

import (
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func encoded(t testing.TB, c fsm.Command) []byte {
	t.Helper()
	data, err := fsm.EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A command that not every node can apply stops the cluster when it is
// committed, on every node and after each restart. So none may be proposed.
//
// It holds this defect: one command of another node that nobody can decode would have
// been committed, and have stopped every node for good.
func TestRegressionGarbageIsNotProposed(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":        nil,
		"garbage":        []byte("garbage"),
		"newer version":  append([]byte{0x08, 0x63}, encoded(t, fsm.Command{Node: "b", Action: fsm.Settle{}})[2:]...),
		"cut off":        encoded(t, fsm.Command{Node: "b", Action: fsm.Hold{ID: idOf(1), Reason: "because"}})[:10],
		"trailing bytes": append(encoded(t, fsm.Command{Node: "b", Action: fsm.Settle{}}), 0xff),
	} {
		if err := admit("b", data, nil); err == nil {
			t.Errorf("%s: admitted", name)
		}
	}
}

// TestRegressionPeersSpeakForThemselvesOnly holds this defect: a command could speak for
// another node than the one that its certificate names.
func TestRegressionPeersSpeakForThemselvesOnly(t *testing.T) {
	ref := mail.NewBody([]byte("hello\r\n")).Ref(idOf(1))
	other := mail.NewBody([]byte("other\r\n")).Ref(idOf(1))
	accept := fsm.Accept{Body: ref, Envelope: mail.Envelope{Recipients: []mail.Recipient{{
		Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: "u", Host: "example.org"}}, Domain: "example.org",
	}}}}
	for _, c := range []struct {
		name    string
		command fsm.Command
		body    *mail.BodyRef
		want    bool
	}{
		{"its own mail", fsm.Command{Node: "b", Action: accept}, &ref, true},
		{"mail without its body", fsm.Command{Node: "b", Action: accept}, nil, false},
		{"mail with another body", fsm.Command{Node: "b", Action: accept}, &other, false},
		{"a body without mail", fsm.Command{Node: "b", Action: fsm.Settle{}}, &ref, false},
		{"in another's name", fsm.Command{Node: "c", Action: fsm.Settle{}}, nil, false},
		{"its own outcomes", fsm.Command{Node: "b", Action: fsm.RecordOutcomes{Holder: "b", Token: 7}}, nil, true},
		{"another's outcomes", fsm.Command{Node: "b", Action: fsm.RecordOutcomes{Holder: "c", Token: 7}}, nil, false},
		{"its own renewal", fsm.Command{Node: "b", Action: fsm.RenewLeases{Holder: "b", Token: 7}}, nil, true},
		{"another's renewal", fsm.Command{Node: "b", Action: fsm.RenewLeases{Holder: "c", Token: 7}}, nil, false},
		{"what it saw", fsm.Command{Node: "b", Action: fsm.ReportNextHop{Node: "b", Domain: "example.org"}}, nil, true},
		{"what another saw", fsm.Command{Node: "b", Action: fsm.ReportNextHop{Node: "c", Domain: "example.org"}}, nil, false},
		{"its own start", fsm.Command{Node: "b", Action: fsm.RecordStart{Server: "b/1", Number: 1}}, nil, true},
		{"another's start", fsm.Command{Node: "b", Action: fsm.RecordStart{Server: "c/1", Number: 1}}, nil, false},
		{"a grant", fsm.Command{Node: "b", Action: fsm.GrantLeases{Holder: "b", Domain: "example.org"}}, nil, false},
		{"an expiry", fsm.Command{Node: "b", Action: fsm.ExpireLeases{Token: 7, Renewal: 7}}, nil, false},
		{"a tick", fsm.Command{Node: "b", Action: fsm.Tick{Elapsed: 1000}}, nil, false},
		{"settings", fsm.Command{Node: "b", Action: fsm.PutSettings{}}, nil, false},
		{"an administrator's hold", fsm.Command{Node: "b", Action: fsm.Hold{ID: idOf(1)}}, nil, true},
	} {
		if err := admit("b", encoded(t, c.command), c.body); (err == nil) != c.want {
			t.Errorf("%s: %v, want admitted: %v", c.name, err, c.want)
		}
	}
}
