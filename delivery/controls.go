package delivery

import (
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// bounce reports mail of the domain as refused for good. It is the control
// UnknownNameBounced, and is in no other build.
func (h *hop) bounce() {
	lease, err := h.pull(h.batch(), Feedback{})
	if err != nil || len(lease.Messages) == 0 {
		return
	}
	reports := newReporter(h.a, h.name, lease.Token)
	h.a.running.Go(reports.run)
	noSuchDomain := mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 2}, Text: "no such domain"}
	for _, m := range lease.Messages {
		reports.add(newOutcomes(m).all(fsm.Failed, noSuchDomain).outcomes)
	}
	reports.close()
	<-reports.done
}
