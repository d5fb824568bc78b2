package cluster

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// admit judges the command of a peer before it is proposed. It must be one that
// every node can apply, since a committed entry that cannot be understood stops
// the whole cluster; and it must speak for the node whose certificate came with
// it, for nobody else, and not do what only the leader does.
func admit(from fsm.NodeName, data []byte, body *mail.BodyRef) error {
	c, err := fsm.DecodeCommand(data)
	if err != nil {
		return fmt.Errorf("command of %s: %w", from, err)
	}
	if err := matchBody(c, body); err != nil {
		return fmt.Errorf("command of %s: %w", from, err)
	}
	if c.Node != from {
		return fmt.Errorf("%s proposes in the name of %q", from, c.Node)
	}
	speaker := from
	switch a := c.Action.(type) {
	case fsm.RenewLeases:
		speaker = a.Holder
	case fsm.RecordOutcomes:
		speaker = a.Holder
	case fsm.ReportNextHop:
		speaker = a.Node
	case fsm.RecordStart:
		speaker = fsm.NodeName(consensus.ServerID(a.Server).Name())
	case fsm.GrantLeases, fsm.ExpireLeases, fsm.Tick, fsm.PutSettings:
		return fmt.Errorf("%s proposes %T, which only a leader does", from, a)
	}
	if speaker != from {
		return fmt.Errorf("%s proposes %T for %q", from, c.Action, speaker)
	}
	return nil
}
