package node

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/sts"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// stsPolicies is a sts.Cache that all nodes have in common and that outlives a restart:
// who cuts one node off from a policy's host must not have its mail go without (RFC 8461
// section 10.2). What is not kept for all, too long a policy among it, the node has for
// itself.
type stsPolicies struct {
	member interface {
		View() *fsm.State
		Do(context.Context, fsm.Action) (fsm.Result, error)
	}
	own sts.Memory
}

// stsPutPatience bounds how long a delivery waits for a policy to be kept.
const stsPutPatience = 5 * time.Second

// Get implements sts.Cache: what was fetched last.
func (p *stsPolicies) Get(ctx context.Context, d mail.Domain) (sts.Entry, bool) {
	own, kept := p.own.Get(ctx, d)
	if all, ok := p.member.View().STSPolicy(d); ok {
		if at := time.UnixMilli(all.Fetched); !kept || at.After(own.Fetched) {
			return sts.Entry{ID: all.ID, Text: []byte(all.Text), Fetched: at}, true
		}
	}
	return own, kept
}

// Put implements sts.Cache.
func (p *stsPolicies) Put(ctx context.Context, d mail.Domain, e sts.Entry) error {
	if err := p.own.Put(ctx, d, e); err != nil {
		return err
	}
	if len(e.Text) > fsm.STSPolicyBytesMax {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stsPutPatience)
	defer cancel()
	result, err := p.member.Do(ctx, fsm.RecordPolicy{Domain: d, Policy: fsm.STSPolicy{ID: e.ID, Text: string(e.Text), Fetched: e.Fetched.UnixMilli()}})
	if err == nil && result.Verdict != fsm.Done {
		err = fmt.Errorf("%s", result.Text)
	}
	return err
}
