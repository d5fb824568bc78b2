package consensus

import "github.com/holdfast-mx/holdfast/fsm/mail"

// heldBodies are bodies that are here when they are held. They stand beside a log
// that cannot tell after a crash which entries were settled: there the body must
// be durable before the entry is written.
type heldBodies struct{ Bodies }

// Pin waits for a body that is on its way.
func (b heldBodies) Pin(ref mail.BodyRef) (release func(), here bool) {
	release, here = b.Bodies.Pin(ref)
	if here && b.Await(ref) != nil {
		release()
		return func() {}, false
	}
	return release, here
}
