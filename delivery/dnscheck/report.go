package dnscheck

import "github.com/holdfast-mx/holdfast/fsm/mail"

// A Level is how bad a finding is.
type Level uint8

// The levels, the best first.
const (
	Fine    Level = iota
	Warning       // mail comes, and something should be otherwise
	Error         // mail, or that of some senders, does not come to where it should
)

var levelNames = [...]string{Fine: "fine", Warning: "warning", Error: "error"}

// String returns the level in a word.
func (l Level) String() string { return levelNames[l] }

// What a finding is about.
const (
	CheckMX          = "mx"
	CheckAddress     = "address"
	CheckPTR         = "ptr"
	CheckSMTP        = "smtp"
	CheckCertificate = "certificate"
	CheckTLSA        = "tlsa"
	CheckSTS         = "mta-sts"
)

// A Finding is one thing that was judged.
type Finding struct {
	Level   Level
	Check   string
	Text    string
	Records []Record // that would mend it
	// Policy is the text of an MTA-STS policy that would, "" where there is
	// nothing to be said of it.
	Policy string
}

// A Record is a DNS record that should be there, or should not.
type Record struct {
	Remove bool
	Name   string // with the trailing dot
	Type   string
	Data   string // as in a zone file
}

// String returns the record as a line of a zone file.
func (r Record) String() string { return r.Name + " 3600 IN " + r.Type + " " + r.Data }

// A Report is all that was found, in the order of the Facts.
type Report struct {
	Nodes   []NodeReport
	Domains []DomainReport
}

// A NodeReport is what was found of a node.
type NodeReport struct {
	Name, Host string
	Findings   []Finding
}

// A DomainReport is what was found of a relay domain.
type DomainReport struct {
	Name     mail.Domain
	Findings []Finding
}

// Count returns how many findings there are of a level.
func (r Report) Count(l Level) int {
	n := 0
	for f := range r.all {
		if f.Level == l {
			n++
		}
	}
	return n
}

// Records returns what is to be changed, each record once.
func (r Report) Records() []Record {
	var out []Record
	seen := map[Record]bool{}
	for f := range r.all {
		for _, record := range f.Records {
			if !seen[record] {
				seen[record] = true
				out = append(out, record)
			}
		}
	}
	return out
}

func (r Report) all(yield func(Finding) bool) {
	for _, d := range r.Domains {
		for _, f := range d.Findings {
			if !yield(f) {
				return
			}
		}
	}
	for _, n := range r.Nodes {
		for _, f := range n.Findings {
			if !yield(f) {
				return
			}
		}
	}
}
