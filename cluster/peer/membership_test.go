package peer

import (
	"errors"
	"fmt"
	"testing"
)

// A change of the servers is asked for by whom the certificate names; and of what
// comes back only ErrNotAppended is certain.
func TestChangeServers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var asked string
		refusal, err := "", error(nil)
		at := &backend{servers: func(from string, m Membership) (string, error) {
			asked = fmt.Sprintf("%s: %+v", from, m)
			return refusal, err
		}}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		change := Membership{Action: MemberRemove, Name: "n4", Force: true}
		if r, err := a.peers.ChangeServers(t.Context(), "b", change); r != "" || err != nil || asked != fmt.Sprintf("a: %+v", change) {
			t.Errorf("%q, %v; asked %s", r, err, asked)
		}
		refusal = "no"
		if r, err := a.peers.ChangeServers(t.Context(), "b", change); r != "no" || err != nil {
			t.Errorf("refused: %q, %v", r, err)
		}
		refusal, err = "", fmt.Errorf("%w: busy", ErrNotAppended)
		if r, err := a.peers.ChangeServers(t.Context(), "b", change); r != "" || !errors.Is(err, ErrNotAppended) {
			t.Errorf("not appended: %q, %v", r, err)
		}
		err = errors.New("who knows")
		if r, err := a.peers.ChangeServers(t.Context(), "b", change); r != "" || err == nil || errors.Is(err, ErrNotAppended) {
			t.Errorf("unknown: %q, %v", r, err)
		}
		if r, err := a.peers.ChangeServers(t.Context(), "b", Membership{Name: "n4"}); r != "" || err == nil || errors.Is(err, ErrNotAppended) {
			t.Errorf("no action: %q, %v", r, err)
		}
	})
}
