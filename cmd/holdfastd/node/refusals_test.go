package node

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestRefusals: an alarm stands from the first refusal to the first welcome, with what
// was said last, or until the domain is gone; only the first of each is news.
func TestRefusals(t *testing.T) {
	var all refusals
	now := time.Now()
	known := func(mail.Domain) bool { return true }
	blocked := &smtpclient.StageError{Stage: smtpclient.StageBanner, Reply: mail.Reply{Code: 554, Text: "blocked"}}
	busy := &smtpclient.StageError{Stage: smtpclient.StageBanner, Reply: mail.Reply{Code: 421, Text: "busy"}}
	for i, step := range []struct {
		e    *smtpclient.StageError
		news bool
		says string
	}{{nil, false, ""}, {blocked, true, "banner: 554 blocked"}, {busy, false, "banner: 421 busy"}, {nil, true, ""}, {nil, false, ""}, {blocked, true, "banner: 554 blocked"}} {
		if news := all.note("example.test", step.e, now.Add(time.Duration(i)*time.Minute)); news != step.news {
			t.Errorf("%d: news %v", i, news)
		}
		got := all.alarms(known)
		if (len(got) > 0) != (step.says != "") || len(got) > 0 && (got[0].Scope != "domain example.test" || !strings.Contains(got[0].Cause, step.says)) {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if since := all.alarms(known)[0].Since; !since.Equal(now.Add(5 * time.Minute)) {
		t.Errorf("since %v", since)
	}
	if got := all.alarms(func(mail.Domain) bool { return false }); len(got) != 0 {
		t.Errorf("of a domain that is gone: %+v", got)
	}
}
