package admin

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// TestReadMessage: what is held can be had octet for octet, piece by piece, as long as
// the cluster keeps it, and whoever reads it leaves one line.
func TestReadMessage(t *testing.T) {
	c := newFakeCluster()
	c.domain(t, "example.test")
	held, here, lost := c.accept(t, 1, "a@example.test"), id(2), c.accept(t, 3, "c@example.test")
	content := []byte(strings.Repeat("0123456789abcde\n", 1<<17) + "end") // two pieces and a bit
	c.apply(t, "mx1", fsm.Accept{
		Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: "b", Host: "example.test"}}, Domain: "example.test"}}},
		Body:     mail.NewBody(content).Ref(here),
	})
	c.bodies = map[mail.QueueID]io.ReadSeeker{held: bytes.NewReader([]byte{1}), here: bytes.NewReader(content)}
	c.apply(t, "mx1", fsm.Hold{ID: held})
	client, logs, _ := serve(t, c)
	read := func(id string, offset int64) (*adminpb.ReadMessageReply, error) {
		return client.ReadMessage(t.Context(), &adminpb.ReadMessageRequest{QueueId: id, Offset: offset})
	}

	if r, err := read(held.String(), 0); err != nil || string(r.GetOctets()) != "\x01" || r.GetSize() != 1 {
		t.Fatalf("a held message: %v, %v", r, err)
	}
	var got []byte
	pieces := 0
	for ; ; pieces++ {
		r, err := read(here.String(), int64(len(got)))
		if err != nil {
			t.Fatal(err)
		}
		if digest := mail.NewBody(content).Ref(here).Digest; r.GetSize() != int64(len(content)) || !bytes.Equal(r.GetSha256(), digest[:]) {
			t.Errorf("%d octets of digest %x", r.GetSize(), r.GetSha256())
		}
		if len(r.GetOctets()) == 0 {
			break
		}
		got = append(got, r.GetOctets()...)
	}
	if !bytes.Equal(got, content) || pieces != 3 {
		t.Errorf("%d octets in %d pieces, want %d", len(got), pieces, len(content))
	}
	if r, err := read(here.String(), 1<<62); err != nil || len(r.GetOctets()) != 0 {
		t.Errorf("far behind the end: %v", err)
	}

	c.apply(t, "mx1", fsm.Remove{ID: held})
	for name, row := range map[string]struct {
		id     string
		offset int64
		code   codes.Code
		text   string
	}{
		"nothing":           {"", 0, codes.InvalidArgument, "queue_id is missing"},
		"before the start":  {here.String(), -1, codes.InvalidArgument, "offset -1"},
		"unknown":           {id(9).String(), 0, codes.NotFound, "no message"},
		"what is removed":   {held.String(), 0, codes.FailedPrecondition, "no longer kept"},
		"what nobody holds": {lost.String(), 0, codes.Unavailable, "cannot read the content"},
	} {
		if _, err := read(row.id, row.offset); status.Code(err) != row.code || !strings.Contains(status.Convert(err).Message(), row.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for id, want := range map[mail.QueueID]int{held: 1, here: 1, lost: 1} {
		n := 0
		for line := range strings.SplitSeq(logs.String(), "\n") {
			if strings.Contains(line, "msg=audit call=ReadMessage") && strings.Contains(line, id.String()) {
				n++
			}
		}
		if n != want {
			t.Errorf("%d audit lines about %s, want %d", n, id, want)
		}
	}
}
