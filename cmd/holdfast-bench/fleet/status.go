package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// Status is what "holdfast status -o json" says, as far as a fleet needs it.
type Status struct {
	Node         string   `json:"node"`
	Leader       string   `json:"leader"`
	IsLeader     bool     `json:"is_leader"`
	Term         uint64   `json:"term"`
	ServerID     string   `json:"server_id"`
	AppliedIndex uint64   `json:"applied_index"`
	CommitIndex  uint64   `json:"commit_index"`
	Voters       []string `json:"voters"`
	Quorum       bool     `json:"quorum"`
	Queue        Queue    `json:"queue"`
	Counters     Counters `json:"counters"`
	Domains      []Domain `json:"domains"`
	// FewestCopies is how many nodes are known to hold every live body; nil
	// where there is none.
	FewestCopies *int `json:"fewest_copies"`
}

// Queue counts messages.
type Queue struct {
	Queued  int `json:"queued"`
	Held    int `json:"held"`
	Leased  int `json:"leased"`
	InDoubt int `json:"in_doubt"`
	Live    int `json:"live"`
}

// Idle reports whether nothing is left to be done.
func (q Queue) Idle() bool { return q.Queued == 0 && q.Leased == 0 && q.InDoubt == 0 }

func (q Queue) String() string {
	return fmt.Sprintf("queued=%d leased=%d in-doubt=%d held=%d", q.Queued, q.Leased, q.InDoubt, q.Held)
}

// Counters count what happened.
type Counters struct {
	Accepted           int `json:"accepted"`
	Repeats            int `json:"repeats"`
	Delivered          int `json:"delivered"`
	PossibleDuplicates int `json:"possible_duplicates"`
	ExpiredLeases      int `json:"expired_leases"`
	AcceptUnknown      int `json:"accept_unknown_total"`
}

// A Domain is the state of one relay domain.
type Domain struct {
	Name         string `json:"name"`
	NextHopState string `json:"next_hop_state"`
	Detail       string `json:"detail"`
	Stopped      bool   `json:"stopped"`
	Queued       int    `json:"queued"`
	Leased       int    `json:"leased"`
}

// OnlyReports reports whether nothing is left to be done for relay domains: what else is
// queued goes to senders.
func (s Status) OnlyReports() bool {
	return !slices.ContainsFunc(s.Domains, func(d Domain) bool { return d.Queued > 0 || d.Leased > 0 })
}

// Status asks a node for its status.
func (f *Fleet) Status(ctx context.Context, n *Node) (Status, error) {
	out, err := f.Holdfast(ctx, n, "status", "-o", "json")
	if err != nil {
		return Status{}, err
	}
	var s Status
	if err := json.Unmarshal(out, &s); err != nil {
		return Status{}, fmt.Errorf("status of %s: %w", n.Name, err)
	}
	return s, nil
}

// Running returns the nodes that run.
func (f *Fleet) Running() []*Node {
	return slices.DeleteFunc(slices.Clone(f.Nodes), func(n *Node) bool { return !n.Running() })
}

// Leader waits until one running node says that it leads with a quorum, and
// returns it with its status.
func (f *Fleet) Leader(ctx context.Context) (*Node, Status, error) {
	var leader *Node
	var status Status
	err := f.Until(ctx, "a leader", func(ctx context.Context) error {
		for _, n := range f.Running() {
			s, err := f.Status(ctx, n)
			if err == nil && s.IsLeader && s.Quorum {
				leader, status = n, s
				return nil
			}
		}
		return errors.New("no running node leads")
	})
	return leader, status, err
}

// Ready waits until every running node knows a leader, has all voters, has
// applied what the leader had committed, and greets SMTP clients with a 220.
func (f *Fleet) Ready(ctx context.Context) error {
	_, leading, err := f.Leader(ctx)
	if err != nil {
		return err
	}
	for _, n := range f.Running() {
		err := f.Until(ctx, n.Name+" ready", func(ctx context.Context) error {
			s, err := f.Status(ctx, n)
			switch {
			case err != nil:
				return err
			case s.Leader == "" || !s.Quorum:
				return fmt.Errorf("leader %q, quorum %v", s.Leader, s.Quorum)
			case len(s.Voters) != len(f.Nodes):
				return fmt.Errorf("voters %v", s.Voters)
			case s.AppliedIndex < leading.CommitIndex:
				return fmt.Errorf("applied %d of %d", s.AppliedIndex, leading.CommitIndex)
			}
			return Greets(ctx, n.SMTP)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Greets returns nil when the SMTP server at an address greets with a 220.
func Greets(ctx context.Context, address string) error {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("banner of %s: %w", address, err)
	}
	if !strings.HasPrefix(line, "220") {
		return fmt.Errorf("banner of %s: %s", address, strings.TrimSpace(line))
	}
	conn.Write([]byte("QUIT\r\n"))
	return nil
}

// Until looks at a condition again and again until it returns nil. It ends with
// an error when ctx ends, or when a node has ended by itself.
func (f *Fleet) Until(ctx context.Context, what string, condition func(context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		if fallen := f.Fallen(); fallen != nil {
			return fmt.Errorf("wait for %s: %w", what, fallen)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last: %w", what, context.Cause(ctx), err)
		}
	}
}
