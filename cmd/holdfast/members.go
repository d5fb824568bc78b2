package main

import (
	"context"

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
	}
)

func (a *app) membersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "members",
		Short: "List the nodes: who is seen by gossip, who has a vote, who leads",
		Long: `List the nodes that this node knows. Gossip reports who is there; a vote is
something else, and is changed by the cluster only.`,
		Example: `  holdfast members
  holdfast members -o json`,
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
}

func toMembersJSON(members []*adminpb.Member) []memberJSON {
	js := []memberJSON{}
	for _, m := range members {
		js = append(js, memberJSON{
			Name: m.GetName(), ServerID: m.GetServerId(), ClusterAddress: m.GetClusterAddress(), GossipStatus: m.GetGossipStatus(),
			Voter: m.GetVoter(), Leader: m.GetLeader(), HasState: m.GetHasState(), CommandVersion: m.GetCommandVersion(), Lag: m.Lag,
		})
	}
	return js
}

func (a *app) printMembers(members []*adminpb.Member) error {
	t := newTable(a.out, "MEMBER", "GOSSIP", "ROLE", "ADDRESS", "SERVER ID", "LAG")
	for _, m := range members {
		role := "no vote"
		switch {
		case m.GetLeader():
			role = "leader"
		case m.GetVoter():
			role = "voter"
		}
		lag := ""
		if m.Lag != nil {
			lag = count(m.GetLag())
		}
		t.row(m.GetName(), m.GetGossipStatus(), role, m.GetClusterAddress(), m.GetServerId(), lag)
	}
	return t.flush()
}
