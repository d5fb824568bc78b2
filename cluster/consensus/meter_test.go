package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fill returns n octets that would be something else if they were looked at.
func fill(n int) string { return strings.Repeat("\xc6", n) }

// TestMeterFindsTheEnd of every kind of value, in whatever pieces it comes.
func TestMeterFindsTheEnd(t *testing.T) {
	values := []string{
		"\x00", "\x7f", "\xe0", "\xff", "\xc0", "\xc1", "\xc2", "\xc3",
		"\xa0", "\xa3" + fill(3), "\xbf" + fill(31),
		"\xc4\x00", "\xc4\xff" + fill(255), "\xc5\x01\x02" + fill(258), "\xc6\x00\x01\x00\x02" + fill(65538),
		"\xd9\xff" + fill(255), "\xda\x01\x02" + fill(258), "\xdb\x00\x01\x00\x02" + fill(65538),
		"\xc7\x00" + fill(1), "\xc7\x05" + fill(6), "\xc8\x01\x02" + fill(259), "\xc9\x00\x01\x00\x02" + fill(65539),
		"\xca" + fill(4), "\xcb" + fill(8),
		"\xcc" + fill(1), "\xcd" + fill(2), "\xce" + fill(4), "\xcf" + fill(8),
		"\xd0" + fill(1), "\xd1" + fill(2), "\xd2" + fill(4), "\xd3" + fill(8),
		"\xd4" + fill(2), "\xd5" + fill(3), "\xd6" + fill(5), "\xd7" + fill(9), "\xd8" + fill(17),
		"\x80", "\x81\xa1x\x01", "\x8f" + strings.Repeat("\x01\xc4\x01x", 15),
		"\x90", "\x9f" + strings.Repeat("\xa1x", 15), "\x91\x91\x81\x01\x90",
		"\xdc\x01\x02" + strings.Repeat("\xc0", 258), "\xdd\x00\x00\x01\x02" + strings.Repeat("\x80", 258),
		"\xde\x01\x02" + strings.Repeat("\x01\xc0", 258), "\xdf\x00\x00\x01\x02" + strings.Repeat("\xa1x\x90", 258),
		string(raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
			{ID: "a/1", Address: "a/1@host:1"}, {ID: raft.ServerID(fill(300)), Address: raft.ServerAddress(fill(70000)), Suffrage: raft.Nonvoter},
		}})),
	}
	for _, piece := range []int{1, 2, 7, 1 << 20} {
		for _, kind := range []byte{1, kindInstallSnapshot} {
			requests, answers := meter{requests: true}, meter{}
			for _, v := range values {
				for which, m := range map[string]*meter{"request": &requests, "answer": &answers} {
					m.start()
					message := v
					if m.requests {
						message = string(kind) + v
					}
					for rest := []byte(message); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
						if over := m.pending == 0 && m.skip == 0 && m.sizing == 0 && len(rest) < len(message); over && !m.kinded || m.inData {
							t.Fatalf("%s %.20q in pieces of %d: over %d octets too early", which, message, piece, len(rest))
						}
						if err := m.take(rest[:min(piece, len(rest))]); err != nil {
							t.Fatalf("%s %.20q in pieces of %d: %v", which, message, piece, err)
						}
					}
					if m.pending != 0 || m.skip != 0 || m.sizing != 0 || m.kinded {
						t.Fatalf("%s %.20q in pieces of %d: not over at its end: %+v", which, message, piece, m)
					}
					if m.inData != (m.requests && kind == kindInstallSnapshot) {
						t.Fatalf("%s %.20q: in data %v", which, message, m.inData)
					}
					m.inData = false
				}
			}
		}
	}
}

// TestMeterBounds: the greatest that is taken, and one more; what is announced
// counts at once.
func TestMeterBounds(t *testing.T) {
	bin := func(n int) string {
		return "\xc6" + string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	array := func(n int) string { return "\xdd" + bin(n)[1:] }
	for _, test := range []struct {
		name, message string
		ok            bool
	}{
		{"the longest", bin(requestBytesMax-6) + fill(requestBytesMax-6), true},
		{"one more is announced", bin(requestBytesMax - 5), false},
		{"many short ones", array(requestValuesMax-1) + strings.Repeat("\xc0", requestValuesMax-1), true},
		{"one more is announced", array(requestValuesMax), false},
		{"too many in depth", strings.Repeat("\x91", requestValuesMax+1), false},
		{"the greatest numbers", "\x92\xdd\xff\xff\xff\xff\xdf\xff\xff\xff\xff", false},
	} {
		m := meter{requests: true}
		if err := m.take([]byte("\x00" + test.message)); (err == nil) != test.ok || err != nil && !errors.Is(err, errOversized) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	// Requests that come without waiting for an answer count together.
	m := meter{requests: true}
	var err error
	for n := 0; err == nil && n <= requestValuesMax; n++ {
		err = m.take([]byte("\x03\xc0"))
	}
	if err == nil {
		t.Error("requests without end")
	}
	// The data of a snapshot has its own bound.
	m = meter{requests: true, inData: true, data: snapshotBytesMax + requestBytesMax - 1}
	if err := m.take([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := m.take([]byte("x")); err == nil {
		t.Error("a snapshot without end")
	}
}

// TestNothingFollowsASnapshot on its connection: where its data ended only the
// decoder knows, so what follows could not be measured.
func TestNothingFollowsASnapshot(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		_, host := c.outside()
		defer host.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := host.Dial(ctx, a.id(), a.address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// It is refused, and answered: an error and no response.
		if _, err := conn.Write([]byte("\x02\x80")); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if !bytes.Contains(answer, []byte(errMalformed.Error())) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("answer %q, %v", answer, err)
		}
		c.commit(a)
	})
}
