package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The JSON of "members". Field names are an interface.
type (
	membersJSON struct {
		Members []memberJSON `json:"members"`
		StaleMS *int64       `json:"stale_ms"`
		Quorum  bool         `json:"quorum"`
	}
	memberJSON struct {
		Name           string  `json:"name"`
		ServerID       string  `json:"server_id"`
		ClusterAddress string  `json:"cluster_address"`
		GossipStatus   string  `json:"gossip_status"`
		Voter          bool    `json:"voter"`
		Leader         bool    `json:"leader"`
		HasState       bool    `json:"has_state"`
		CommandVersion uint32  `json:"command_version"`
		Lag            *uint64 `json:"lag"`
		Role           string  `json:"role"` // "leader", "voter", "nonvoter", or "" where it is not in the cluster
		// What it said when it was last heard, so long ago; null where it never was.
		SaidMS    *int64         `json:"said_ms"`
		Silent    string         `json:"silent"` // why it said nothing since, or empty
		Hydration *hydrationJSON `json:"hydration"`
		Scrub     *scrubJSON     `json:"scrub"`
	}
	hydrationJSON struct {
		Known        bool   `json:"known"`
		Missing      uint64 `json:"missing"`
		MissingBytes uint64 `json:"missing_bytes"`
		Fetched      uint64 `json:"fetched"`
		FetchedBytes uint64 `json:"fetched_bytes"`
		Rate         uint64 `json:"rate"`
		LeftMS       *int64 `json:"left_ms"`
		NotFound     uint64 `json:"not_found"`
		Lost         uint64 `json:"lost"`
		WaitingFor   string `json:"waiting_for"`
		LastError    string `json:"last_error"`
		LastErrorAt  string `json:"last_error_at"`
	}
	scrubJSON struct {
		Running    bool   `json:"running"`
		Stopped    bool   `json:"stopped"`
		Began      string `json:"began"`
		Ended      string `json:"ended"`
		Bodies     uint64 `json:"bodies"`
		Bytes      uint64 `json:"bytes"`
		Total      uint64 `json:"total_bodies"`
		TotalBytes uint64 `json:"total_bytes"`
		Bad        uint64 `json:"bad"`
		Repaired   uint64 `json:"repaired"`
		Unread     uint64 `json:"unread"`
		Problem    string `json:"problem"`
	}
)

func (a *app) membersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the nodes: who is seen by gossip, who has a vote, who leads; add and remove them",
		Long: `List the nodes that this node knows. Gossip reports who is there; a vote is
something else, and is changed by "members add" and "members remove" only.`,
		Example: `  holdfast members
  holdfast members -o json
  holdfast members add mx4`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				r, err := c.Members(ctx, &adminpb.MembersRequest{})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return writeJSON(a.out, membersJSON{toMembersJSON(r.GetMembers()), staleMS(r.GetFreshness()), r.GetFreshness().GetQuorum()})
				}
				a.noteFreshness(r.GetFreshness())
				return a.printMembers(r.GetMembers())
			})
		},
	}
	cmd.AddCommand(a.memberAddCommand(), a.memberRemoveCommand())
	return cmd
}

func (a *app) memberAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME",
		Short: "Take a node into the cluster, or one that lost its disk back into it",
		Long: `Take a node into the cluster. It must run, with an empty data directory, this
cluster's CA and gossip key, and a node of the cluster in "join": "holdfast
members" then lists it as not added.

It first receives what the others have, without a vote; "holdfast status" shows
how far it is. As soon as it lacks nothing it becomes a voter by itself. One node
can join at a time.

A node that lost its disk is added in the same way, under its old name: it takes
over the vote of its earlier life, which is removed.`,
		Example: `  holdfast members add mx4`,
		Args:    exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				if _, err := c.AddMember(ctx, &adminpb.AddMemberRequest{Name: args[0]}); err != nil {
					return err
				}
				return a.done(fmt.Sprintf("%s joins, and becomes a voter when it lacks nothing: see \"holdfast status\".", args[0]), map[string]any{"name": args[0]})
			})
		},
	}
}

func (a *app) memberRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node out of the cluster, or give up its joining",
		Long: `Take a node out of the cluster, whether it runs or not. Of a node that is joining,
the joining is given up.

Refused where the voters that are left could commit nothing, and where a majority
of them is not known to hold every queued message. --force ignores the latter:
what only the removed node holds may then be lost.

Stop the node afterwards. Before it can be added again it needs an empty data
directory.`,
		Example: `  holdfast members remove mx2`,
		Args:    exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				if _, err := c.RemoveMember(ctx, &adminpb.RemoveMemberRequest{Name: args[0], Force: force}); err != nil {
					return err
				}
				return a.done(fmt.Sprintf("Removed %s. Stop it, if it runs.", args[0]), map[string]any{"name": args[0]})
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also where messages may be lost")
	return cmd
}

// role is what a member is in the cluster, in one word.
func role(m *adminpb.Member) string {
	switch {
	case m.GetLeader():
		return "leader"
	case m.GetVoter():
		return "voter"
	case m.GetNonvoter():
		return "nonvoter"
	}
	return ""
}

func toMembersJSON(members []*adminpb.Member) []memberJSON {
	js := []memberJSON{}
	for _, m := range members {
		j := memberJSON{
			Name: m.GetName(), ServerID: m.GetServerId(), ClusterAddress: m.GetClusterAddress(), GossipStatus: m.GetGossipStatus(),
			Voter: m.GetVoter(), Leader: m.GetLeader(), HasState: m.GetHasState(), CommandVersion: m.GetCommandVersion(), Lag: m.Lag,
			Role: role(m), Silent: m.GetSilent(), Scrub: toScrubJSON(m.GetScrub()),
		}
		if h := m.GetHydration(); h != nil {
			said := m.GetSaidMs()
			j.SaidMS = &said
			j.Hydration = &hydrationJSON{
				Known: h.GetKnown(), Missing: h.GetMissing(), MissingBytes: h.GetMissingBytes(),
				Fetched: h.GetFetched(), FetchedBytes: h.GetFetchedBytes(), Rate: h.GetRate(), LeftMS: h.LeftMs,
				NotFound: h.GetNotFound(), Lost: h.GetLost(), WaitingFor: h.GetWaitingFor(), LastError: h.GetLastError(), LastErrorAt: rfc3339(h.GetLastErrorUnix()),
			}
		}
		js = append(js, j)
	}
	return js
}

// toScrubJSON is null where there was none.
func toScrubJSON(s *adminpb.Scrub) *scrubJSON {
	if s == nil {
		return nil
	}
	return &scrubJSON{
		Running: s.GetRunning(), Stopped: s.GetStopped(), Began: rfc3339(s.GetBeganUnix()), Ended: rfc3339(s.GetEndedUnix()),
		Bodies: s.GetBodies(), Bytes: s.GetBytes(), Total: s.GetTotalBodies(), TotalBytes: s.GetTotalBytes(),
		Bad: s.GetBad(), Repaired: s.GetRepaired(), Unread: s.GetUnread(), Problem: s.GetProblem(),
	}
}

func (a *app) printMembers(members []*adminpb.Member) error {
	t := newTable(a.out, "MEMBER", "GOSSIP", "ROLE", "ADDRESS", "SERVER ID", "LAG")
	for _, m := range members {
		part := role(m)
		if part == "" {
			part = "not added"
		}
		lag := ""
		if m.Lag != nil {
			lag = count(m.GetLag())
		}
		t.row(m.GetName(), m.GetGossipStatus(), part, m.GetClusterAddress(), m.GetServerId(), lag)
	}
	return t.flush()
}

// printBodies tells for each member what it lacks of the live bodies, and what
// its last scrub found.
func (a *app) printBodies(members []*adminpb.Member) error {
	t := newTable(a.out, "MEMBER", "LIVE BODIES", "SCRUB")
	for _, m := range members {
		lacks := "never heard"
		if h := m.GetHydration(); h != nil {
			lacks = hydration(h)
		}
		if m.GetSilent() != "" {
			lacks += "; does not answer: " + m.GetSilent()
		}
		t.row(m.GetName(), lacks, scrub(m.GetScrub()))
	}
	return t.flush()
}

// hydration says in words what a member lacks.
func hydration(h *adminpb.Hydration) string {
	var s string
	switch {
	case h.GetMissing() == 0 && h.GetKnown():
		s = "all"
	case h.GetMissing() == 0:
		s = "not yet counted"
	default:
		s = fmt.Sprintf("lacks %d (%s)", h.GetMissing(), size(int64(h.GetMissingBytes())))
		if h.LeftMs != nil {
			s += fmt.Sprintf(", %s/s, %s left", size(int64(h.GetRate())), span(time.Duration(h.GetLeftMs())*time.Millisecond))
		}
	}
	if h.GetFetched() > 0 {
		s += fmt.Sprintf("; fetched %d (%s)", h.GetFetched(), size(int64(h.GetFetchedBytes())))
	}
	if h.GetMissing() == 0 {
		return s
	}
	if h.GetNotFound() > 0 {
		s += fmt.Sprintf("; %d not found", h.GetNotFound())
		if h.GetLost() > 0 {
			s += fmt.Sprintf(", %d of them nowhere", h.GetLost())
		}
		if h.GetWaitingFor() != "" {
			s += ", waiting for " + h.GetWaitingFor()
		}
	} else if h.GetLastError() != "" {
		s += "; last error: " + h.GetLastError()
	}
	return s
}

// scrub says in words how far a scrub is, or what it found.
func scrub(s *adminpb.Scrub) string {
	if s == nil {
		return "none since its start"
	}
	text := fmt.Sprintf("ended %s: %d bodies read (%s), %d bad, %d repaired", moment(s.GetEndedUnix()),
		s.GetBodies(), size(int64(s.GetBytes())), s.GetBad(), s.GetRepaired())
	switch {
	case s.GetRunning():
		text = fmt.Sprintf("running: %d of %d bodies read (%s of %s), %d bad, %d repaired", s.GetBodies(), s.GetTotalBodies(),
			size(int64(s.GetBytes())), size(int64(s.GetTotalBytes())), s.GetBad(), s.GetRepaired())
	case s.GetStopped():
		text = fmt.Sprintf("stopped %s: %d of %d bodies read (%s), %d bad, %d repaired", moment(s.GetEndedUnix()),
			s.GetBodies(), s.GetTotalBodies(), size(int64(s.GetBytes())), s.GetBad(), s.GetRepaired())
	}
	if s.GetUnread() > 0 {
		text += fmt.Sprintf(", %d not readable", s.GetUnread())
	}
	if s.GetProblem() != "" {
		text += ": " + s.GetProblem()
	}
	return text
}
