package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// How a node may end by itself.
var (
	errRefuses = errors.New("the node refuses its data directory")
	errLacks   = errors.New("the node lacks a message that it had said it has")
	errFell    = errors.New("a node ended by itself")
)

// exitStores is the exit code of a node whose disk failed it, or whose data
// directory it does not trust.
const exitStores = 74

// exitStuck is that of one that cannot go on, for whatever reason.
const exitStuck = 70

// bodyLost is what a node says that cannot keep its word for a message: it may yet be
// able to, when others have come back, and so it has another exit code.
var bodyLost = consensus.ErrBodyLost.Error()

// endsWithin is how long after its disk was mended a node may end because of it: what
// failed may be told late.
const endsWithin = 10 * time.Second

// Ends are those of nodes, by themselves, that are no breach: of each node, when its
// disk, which was broken on purpose, may have ended it.
type ends struct {
	refuse map[int]ledger.Span // by errRefuses
	lack   map[int]ledger.Span // by errLacks, since the disk lost what it had
}

func newEnds() ends { return ends{refuse: map[int]ledger.Span{}, lack: map[int]ledger.Span{}} }

// expect says that an act which is mended may end nodes from now on.
func (e ends) expect(a act) {
	if !a.ends && !a.refuses {
		return
	}
	for _, i := range a.unhealthy {
		e.refuse[i] = ledger.Span{From: a.since, To: time.Now().Add(endsWithin)}
		if a.refuses {
			e.lack[i] = e.refuse[i]
		}
	}
}

// expected reports whether a node's end is of a disk that was broken on purpose. What
// counts is when it ended, not when somebody noticed.
func (e ends) expected(i int, err error) bool {
	at := fellAt(err)
	within := func(s ledger.Span) bool { return !at.Before(s.From) && at.Before(s.To) }
	return errors.Is(err, errRefuses) && within(e.refuse[i]) || errors.Is(err, errLacks) && within(e.lack[i])
}

// fellAt is when a node ended by itself.
func fellAt(err error) time.Time {
	if fall := (*fleet.Fall)(nil); errors.As(err, &fall) {
		return fall.At
	}
	return time.Now()
}

// fell takes the end of a node that nobody told to end.
func fell(n *fleet.Node) error { return endOf(n.TakeFallen()) }

// endOf says which of these ways the end of a node was.
func endOf(err error) error {
	if err == nil {
		return nil
	}
	kind := errFell
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		switch {
		case exit.ExitCode() == exitStores:
			kind = errRefuses
		case exit.ExitCode() == exitStuck && strings.Contains(err.Error(), bodyLost):
			kind = errLacks
		}
	}
	return fmt.Errorf("%w: %w", kind, err)
}
