package sim

import (
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var zeroID mail.QueueID

func hasHeld(m fsm.Message) bool {
	for _, r := range m.Recipients {
		if r.State == fsm.RecipientHeld {
			return true
		}
	}
	return false
}
