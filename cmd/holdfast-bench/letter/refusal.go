package letter

import (
	"strings"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A Refusal is a letter that a primary refuses for good, for some of its recipients or
// all, by what makes a difference to who is told.
type Refusal string

// The refusals.
const (
	Refused       Refusal = "refused"
	RefusedBeside Refusal = "refused beside one that is taken"
	RefusedTwo    Refusal = "two refused, two taken"
	RefusedWhole  Refusal = "refused at the dot"
	RefusedTwice  Refusal = "refused in two domains"
	RefusedUTF8   Refusal = "refused, with SMTPUTF8"
	RefusedAsked  Refusal = "refused, NOTIFY=FAILURE"
	RefusedNever  Refusal = "refused, NOTIFY=NEVER"
	RefusedOther  Refusal = "refused, NOTIFY=SUCCESS"
	RefusedNull   Refusal = "refused, from nobody"
	RefusedList   Refusal = "refused, of a list"
	RefusedAuto   Refusal = "refused, automatic"
)

// Refusals lists what Options.RefusedEvery sends in turn.
func Refusals() []Refusal {
	return []Refusal{
		Refused, RefusedNull, RefusedBeside, RefusedNever, RefusedTwo, RefusedList, RefusedWhole, RefusedAsked,
		RefusedTwice, RefusedAuto, RefusedUTF8, RefusedOther,
	}
}

// Who begins the addresses of recipients that a primary does not have, and of those
// for whom it refuses the whole message.
const (
	nobody = "nobody"
	vetoed = "vetoed"
)

// IsRefused reports whether a recipient is one that a primary which plays along refuses
// for good.
func IsRefused(recipient string) bool {
	return IsRefusedAt(sink.Rcpt, recipient) || IsRefusedAt(sink.Dot, recipient)
}

// IsRefusedAt reports whether it does so at this stage: at RCPT where it has no such
// recipient, at the final dot where it wants no message to him. It is what
// sink.Options.Refuse asks.
func IsRefusedAt(stage sink.Stage, recipient string) bool {
	return stage == sink.Rcpt && strings.HasPrefix(recipient, nobody) ||
		stage == sink.Dot && strings.HasPrefix(recipient, vetoed)
}

func (b *builder) refused(r Refusal) {
	b.i /= b.g.o.RefusedEvery
	b.i += b.i / len(Refusals()) // so that each goes to each domain
	b.letter.Shape = Shape(r)
	b.to(nobody)
	extra := ""
	switch r {
	case RefusedBeside:
		b.to("user", nobody)
	case RefusedTwo:
		b.to("a", nobody+"-1", "b", nobody+"-2")
	case RefusedWhole:
		b.to(vetoed)
	case RefusedTwice:
		b.letter.Recipients = append(b.letter.Recipients, ledger.Recipient(nobody+"-too", b.letter.ID, b.domain(b.i+1)))
	case RefusedUTF8:
		b.letter.EightBit, b.letter.UTF8 = true, true
		extra = "X-Name: Zoë Ångström\r\n"
	case RefusedAsked:
		b.letter.Notify = "FAILURE,DELAY"
	case RefusedNever:
		b.letter.Notify = "NEVER"
	case RefusedOther:
		b.letter.Notify = "SUCCESS"
	case RefusedNull:
		b.letter.ReversePath = ""
	case RefusedList:
		b.letter.Automatic, extra = true, "List-Id: <news.sender.test>\r\n"
	case RefusedAuto:
		b.letter.Automatic, extra = true, "Auto-Submitted: auto-generated\r\n"
	}
	b.text(b.header(string(r)) + extra + "\r\nto nobody\r\n")
	b.fill(b.rand.IntN(20 << 10))
}
