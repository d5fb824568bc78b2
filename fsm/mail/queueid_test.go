package mail

import (
	"strings"
	"testing"
)

func TestQueueIDs(t *testing.T) {
	id := MintQueueID(1_790_000_000_123, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	text := id.String()
	if len(text) != 26 || text != strings.ToUpper(text) || id.UnixMilli() != 1_790_000_000_123 {
		t.Errorf("%s of %d", text, id.UnixMilli())
	}
	for _, in := range []string{text, strings.ToLower(text)} {
		if got, err := ParseQueueID(in); err != nil || got != id {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", text[:25], text + "0", "8" + text[1:], text[:25] + "U", text[:25] + " ", strings.Repeat("é", 13)} {
		if got, err := ParseQueueID(in); err == nil {
			t.Errorf("%q is read as %s", in, got)
		}
	}
	if got, err := QueueIDFromBytes(id[:]); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, n := range []int{0, 15, 17} {
		if _, err := QueueIDFromBytes(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are a queue id", n)
		}
	}
	later := MintQueueID(1_790_000_000_124, [10]byte{})
	if id.Compare(later) >= 0 || later.Compare(id) <= 0 || id.Compare(id) != 0 || (id.String() < later.String()) != true {
		t.Error("ids are not ordered by their time")
	}
	if id.IsZero() || !(QueueID{}).IsZero() {
		t.Error("zero is mistaken")
	}
	if past := MintQueueID(1<<60|5, [10]byte{}); past.UnixMilli() != 5 {
		t.Errorf("a time beyond 48 bits gives %d", past.UnixMilli())
	}
}

func TestReplies(t *testing.T) {
	for want, r := range map[string]Reply{
		"250 2.0.0 Ok":   {250, EnhancedCode{2, 0, 0}, "Ok"},
		"421 go away":    {Code: 421, Text: "go away"},
		"000 ":           {},
		"550 5.1.1 none": {550, EnhancedCode{5, 1, 1}, "none"},
	} {
		if r.String() != want {
			t.Errorf("%q, want %q", r, want)
		}
		if r.Positive() != strings.HasPrefix(want, "2") || r.Transient() != strings.HasPrefix(want, "4") || r.Permanent() != strings.HasPrefix(want, "5") {
			t.Errorf("class of %q", want)
		}
	}
}
