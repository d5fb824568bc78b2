package sink

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A Stage is a point of the conversation at which a primary can misbehave.
type Stage string

// The stages, in the order in which they come. Body is in the middle of the
// content; Dot is the reply to the final dot, with the message not taken;
// AfterDot is the same moment with the message taken, so that a fault there
// loses the reply only.
const (
	Banner   Stage = "banner"
	EHLO     Stage = "ehlo"
	STARTTLS Stage = "starttls"
	Mail     Stage = "mail"
	Rcpt     Stage = "rcpt"
	Data     Stage = "data"
	Body     Stage = "body"
	Dot      Stage = "dot"
	AfterDot Stage = "after-dot"
	Quit     Stage = "quit"
)

// Stages lists every stage in order.
func Stages() []Stage {
	return []Stage{Banner, EHLO, STARTTLS, Mail, Rcpt, Data, Body, Dot, AfterDot, Quit}
}

// An Action is how a primary misbehaves.
type Action string

const (
	// Refuse answers 5yz. It makes no sense in the body, nor after the dot.
	Refuse Action = "refuse"
	// Defer answers 4yz. The same holds.
	Defer Action = "defer"
	// Hang answers nothing and keeps the connection.
	Hang Action = "hang"
	// Drop closes the connection.
	Drop Action = "drop"
)

// A Fault happens at Stage with probability Rate.
type Fault struct {
	Stage  Stage
	Action Action
	Rate   float64
}

func (f Fault) String() string {
	return fmt.Sprintf("%s=%s:%g", f.Stage, f.Action, f.Rate)
}

// ParseFault reads STAGE=ACTION or STAGE=ACTION:RATE.
func ParseFault(s string) (Fault, error) {
	stage, rest, ok := strings.Cut(s, "=")
	if !ok {
		return Fault{}, fmt.Errorf("fault %q: want STAGE=ACTION or STAGE=ACTION:RATE", s)
	}
	action, rate, rated := strings.Cut(rest, ":")
	f := Fault{Stage: Stage(stage), Action: Action(action), Rate: 1}
	if !slices.Contains(Stages(), f.Stage) {
		return Fault{}, fmt.Errorf("fault %q: no stage %q", s, stage)
	}
	switch f.Action {
	case Refuse, Defer:
		if f.Stage == Body || f.Stage == AfterDot {
			return Fault{}, fmt.Errorf("fault %q: there is no reply to give at %s", s, stage)
		}
	case Hang, Drop:
	default:
		return Fault{}, fmt.Errorf("fault %q: no action %q", s, action)
	}
	if rated {
		r, err := strconv.ParseFloat(rate, 64)
		if err != nil || !(r >= 0 && r <= 1) {
			return Fault{}, fmt.Errorf("fault %q: the rate is a number from 0 to 1", s)
		}
		f.Rate = r
	}
	return f, nil
}

// Faults is the plan of misbehaviour, which may be changed while the server
// runs. Its choices come from a seed; which connection meets which choice
// depends on the order in which connections come.
type Faults struct {
	mu     sync.Mutex
	rand   *rand.Rand
	faults []Fault
	struck int
}

// NewFaults returns a plan without faults.
func NewFaults(seed uint64) *Faults {
	return &Faults{rand: rand.New(rand.NewPCG(seed, 0x73696e6b))}
}

// Set replaces the plan. Without arguments the server behaves.
func (f *Faults) Set(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = slices.Clone(faults)
}

// Struck counts the faults that struck so far.
func (f *Faults) Struck() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck
}

// at draws what happens at a stage: an action, or "" for none. The first fault
// that strikes wins.
func (f *Faults) at(s Stage) Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.faults {
		if fault.Stage == s && f.rand.Float64() < fault.Rate {
			f.struck++
			return fault.Action
		}
	}
	return ""
}
