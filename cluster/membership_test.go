package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// stock makes a census. A server is written as NAME/INCARNATION, with "-" behind
// it where it has no vote; what a node says as NAME/INCARNATION and the words
// "whole", "lacks", "old" (a version), "silent" and "stale".
func stock(servers, said string, seen ...string) census {
	now := time.Unix(1000, 0)
	c := census{said: map[string]Condition{}, now: now}
	for _, s := range strings.Fields(servers) {
		id, nonvoter := strings.CutSuffix(s, "-")
		c.servers = append(c.servers, consensus.Server{ID: consensus.ServerID(id), Address: id + ":1", Voter: !nonvoter})
	}
	for _, s := range strings.Split(said, ",") {
		words := strings.Fields(s)
		if len(words) == 0 {
			continue
		}
		one := Condition{Health: peer.Health{ServerID: words[0], CommandVersion: fsm.CommandVersion}, At: now}
		for _, w := range words[1:] {
			switch w {
			case "whole":
				one.Complete = true
			case "old":
				one.CommandVersion--
			case "silent":
				one.Err = errors.New("no answer")
			case "stale":
				one.At = now.Add(-rollLife)
			}
		}
		name, _, _ := strings.Cut(words[0], "/")
		c.said[name] = one
	}
	for _, s := range seen {
		id, dead := strings.CutSuffix(s, "-")
		name, incarnation, _ := strings.Cut(id, "/")
		c.seen = append(c.seen, Sighting{Name: name, Incarnation: incarnation, Address: id + ":1", Alive: !dead})
	}
	return c
}

func (s step) String() string {
	return map[stepKind]string{0: "nothing", stepJoin: "join", stepPromote: "promote", stepRemove: "remove"}[s.kind] + " " + string(s.id)
}

const three = "n1/a n2/a n3/a"

// A server gets a vote only when it answers, and has said that it holds every
// live body; and it takes the place of its earlier life.
func TestNextStep(t *testing.T) {
	for _, test := range []struct{ servers, said, want string }{
		{three, "n1/a whole, n2/a whole, n3/a whole", "nothing "},
		{three + " n4/a-", "n4/a whole", "promote n4/a"},
		{three + " n4/a-", "n4/a lacks", "nothing "},
		{three + " n4/a-", "n4/a whole silent", "nothing "},
		{three + " n4/a-", "n4/a whole stale", "nothing "},
		{three + " n4/a-", "n4/b whole", "nothing "}, // its disk was emptied again
		{three + " n4/a-", "", "nothing "},
		{three + " n2/b-", "n1/a, n3/a, n2/b whole", "remove n2/a"},
		{three + " n2/b-", "n1/a, n3/a, n2/b lacks", "nothing "},
		{three + " n2/b-", "n1/a, n3/a silent, n2/b whole", "nothing "}, // n1 alone could commit nothing
		{"n1/a n3/a n2/b-", "n1/a, n3/a, n2/b whole", "promote n2/b"},
	} {
		got, ok := stock(test.servers, test.said).next()
		if got.String() != test.want || ok != (got.kind != 0) {
			t.Errorf("%s; %s: %v, want %s", test.servers, test.said, got, test.want)
		}
	}
}

// A node is taken in without a vote, one at a time, and only if it can take part.
func TestAddMember(t *testing.T) {
	for _, test := range []struct {
		servers, said string
		seen          string
		want, refusal string
	}{
		{three, "n4/a", "n4/a", "[join n4/a]", ""},
		{three, "n4/a", "n4/a-", "[]", "no node n4 is seen"},
		{three, "n4/a", "n5/a", "[]", "no node n4 is seen"},
		{three, "", "n4/a", "[]", "does not answer"},
		{three, "n4/a silent", "n4/a", "[]", "does not answer"},
		{three, "n4/b", "n4/a", "[]", "does not answer"},
		{three, "n4/a old", "n4/a", "[]", "older version"},
		{three + " n4/a", "n4/a", "n4/a", "[]", "voter already"},
		{three + " n4/a-", "n4/a", "n4/a", "[]", ""}, // asked again
		{three + " n5/a-", "n4/a", "n4/a", "[]", "n5 is still joining"},
		{three + " n4/a-", "n4/b", "n4/b", "[remove n4/a join n4/b]", ""}, // lost its disk while it joined
		{"n1/a n4/a n3/a", "n4/b", "n4/b", "[join n4/b]", ""},             // lost its disk
	} {
		steps, refusal := stock(test.servers, test.said, test.seen).add("n4")
		if fmt.Sprint(steps) != test.want || !strings.Contains(refusal, test.refusal) || (refusal == "") != (test.refusal == "") {
			t.Errorf("%s; %s; %s: %v, %q", test.servers, test.said, test.seen, steps, refusal)
		}
	}
}

// A removal leaves a majority that answers, and that holds everything.
func TestRemoveMember(t *testing.T) {
	for _, test := range []struct {
		servers, said string
		force         bool
		want, refusal string
	}{
		{three, "n1/a whole, n3/a whole", false, "[remove n2/a]", ""},
		{three, "n1/a whole, n3/a lacks", false, "[]", "1 of the 2 voters"},
		{three, "n1/a whole, n3/a lacks", true, "[remove n2/a]", ""},
		{three, "n1/a whole, n3/a whole silent", true, "[]", "no majority"},
		{three, "n1/a whole, n3/b whole", true, "[]", "no majority"},
		{"n1/a n2/a n3/a n4/a", "n1/a whole, n3/a whole, n4/a silent", false, "[remove n2/a]", ""},
		{"n2/a", "n2/a whole", true, "[]", "only voter"},
		{"n1/a n3/a", "n1/a whole, n3/a whole", false, "[]", "no server n2"},
		{three + " n4/a-", "n1/a whole, n3/a whole", false, "[]", "n4 is still joining"},
		{three + " n2/b-", "", false, "[remove n2/b]", ""}, // its joining is given up
		{"n1/a n3/a n2/b-", "", false, "[remove n2/b]", ""},
	} {
		steps, refusal := stock(test.servers, test.said).remove("n2", test.force)
		if fmt.Sprint(steps) != test.want || !strings.Contains(refusal, test.refusal) || (refusal == "") != (test.refusal == "") {
			t.Errorf("%s; %s; force %v: %v, %q", test.servers, test.said, test.force, steps, refusal)
		}
	}
	if c := stock(three, ""); !slices.Equal(c.named("n2"), c.servers[1:2]) {
		t.Errorf("named: %v", c.named("n2"))
	}
}
