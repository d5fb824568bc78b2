// Command jetstream publishes payloads to a NATS JetStream of three servers and
// counts what they acknowledge. It is one side of "holdfast-bench
// versus-jetstream", which starts the servers, and a module of its own, so that
// the product does not depend on NATS.
//
// Each publisher waits for the acknowledgement of one payload before it sends the
// next, over a connection of its own to the server that leads the stream: that is
// the shortest way there is. The stream is made for the run, with three replicas
// on files, and deleted at its end.
//
// The result is one line of JSON on standard output:
//
//	{"accepted":N,"octets":N,"elapsed_ns":N,"latencies_us":[N,...],"failed":N,"first_failure":"..."}
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// readyTime bounds how long the servers may take to form a cluster that
	// takes a stream.
	readyTime = 60 * time.Second
	// attemptTime bounds one attempt to make the stream.
	attemptTime = 5 * time.Second
	// ackTime bounds the wait for one acknowledgement.
	ackTime   = 60 * time.Second
	pollEvery = 100 * time.Millisecond

	streamName = "BENCH"
	subject    = "bench"
	replicas   = 3
)

// options describe a run.
type options struct {
	servers    map[string]string // address by name
	size       int
	publishers int
	duration   time.Duration
	octetsMax  int64
}

// A result is what came of it.
type result struct {
	Accepted     int      `json:"accepted"`
	Octets       int64    `json:"octets"`
	ElapsedNS    int64    `json:"elapsed_ns"`
	LatenciesUS  []uint32 `json:"latencies_us"`
	Failed       int      `json:"failed"`
	FirstFailure string   `json:"first_failure,omitempty"`
}

func main() {
	o, err := parse(os.Args[1:])
	if err == nil {
		var r result
		if r, err = run(context.Background(), o); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "jetstream:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{servers: map[string]string{}}
	flags := flag.NewFlagSet("jetstream", flag.ContinueOnError)
	servers := flags.String("servers", "", "`NAME=HOST:PORT,...` of all servers")
	flags.IntVar(&o.size, "size", 4096, "octets of a payload")
	flags.IntVar(&o.publishers, "publishers", 20, "how many at a time")
	flags.DurationVar(&o.duration, "duration", 10*time.Second, "how long")
	flags.Int64Var(&o.octetsMax, "octets-max", 2<<30, "end after so many octets")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for word := range strings.SplitSeq(*servers, ",") {
		name, address, ok := strings.Cut(word, "=")
		if !ok {
			return o, fmt.Errorf("--servers %q: want NAME=HOST:PORT", word)
		}
		o.servers[name] = address
	}
	if o.size < stampBytes || o.publishers < 1 || o.duration <= 0 {
		return o, errors.New("--size, --publishers and --duration must be positive")
	}
	return o, nil
}

func run(ctx context.Context, o options) (result, error) {
	leader, err := openStream(ctx, o)
	if err != nil {
		return result{}, err
	}
	defer leader.Close()
	conns := make([]*nats.Conn, o.publishers)
	for i := range conns {
		if conns[i], err = nats.Connect(leader.ConnectedUrl()); err != nil {
			return result{}, fmt.Errorf("connect publisher %d: %w", i, err)
		}
		defer conns[i].Close()
	}
	r, err := publish(ctx, o, conns)
	if err != nil {
		return result{}, err
	}
	admin, err := jetstream.New(leader)
	if err != nil {
		return result{}, err
	}
	if err := admin.DeleteStream(ctx, streamName); err != nil {
		return result{}, fmt.Errorf("delete the stream: %w", err)
	}
	return r, nil
}

// openStream makes the stream and returns a connection to the server that leads
// it.
func openStream(ctx context.Context, o options) (*nats.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	var urls []string
	for _, address := range o.servers {
		urls = append(urls, "nats://"+address)
	}
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTime)
		conn, err := tryStream(attempt, o, strings.Join(urls, ","))
		cancel()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no stream of %d replicas within %v: %w", replicas, readyTime, err)
		case <-time.After(pollEvery):
		}
	}
}

func tryStream(ctx context.Context, o options, urls string) (*nats.Conn, error) {
	conn, err := nats.Connect(urls)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: streamName, Subjects: []string{subject}, Storage: jetstream.FileStorage, Replicas: replicas,
	})
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Cluster == nil || len(info.Cluster.Replicas) != replicas-1 {
		return nil, errors.New("the stream has no replicas yet")
	}
	for _, peer := range info.Cluster.Replicas {
		if !peer.Current {
			return nil, fmt.Errorf("replica %s is not current", peer.Name)
		}
	}
	address, ok := o.servers[info.Cluster.Leader]
	if !ok {
		return nil, fmt.Errorf("leader %q is not one of the servers", info.Cluster.Leader)
	}
	return nats.Connect("nats://"+address, nats.NoReconnect())
}

// stampBytes begin each payload and make it unlike all others.
const stampBytes = 16

// publish sends until the time or the octets are used up. Payloads under way are
// finished, and count.
func publish(ctx context.Context, o options, conns []*nats.Conn) (result, error) {
	var (
		wg     sync.WaitGroup
		octets atomic.Int64
		lock   sync.Mutex
		all    = result{}
	)
	streams := make([]jetstream.JetStream, len(conns))
	payloads := make([][]byte, len(conns))
	for i, conn := range conns {
		var err error
		if streams[i], err = jetstream.New(conn); err != nil {
			return result{}, err
		}
		payloads[i] = make([]byte, o.size)
		if _, err := rand.Read(payloads[i]); err != nil {
			return result{}, err
		}
	}
	begin := time.Now()
	for i := range conns {
		wg.Go(func() {
			mine := result{}
			for n := uint64(0); time.Since(begin) < o.duration && octets.Add(int64(o.size)) <= o.octetsMax; n++ {
				binary.BigEndian.PutUint64(payloads[i][8:stampBytes], n)
				sent := time.Now()
				acked, cancel := context.WithTimeout(ctx, ackTime)
				_, err := streams[i].Publish(acked, subject, payloads[i])
				cancel()
				if err != nil {
					mine.Failed++
					mine.FirstFailure = err.Error()
					break
				}
				mine.LatenciesUS = append(mine.LatenciesUS, uint32(time.Since(sent).Microseconds()))
			}
			lock.Lock()
			defer lock.Unlock()
			all.LatenciesUS = append(all.LatenciesUS, mine.LatenciesUS...)
			all.Failed += mine.Failed
			if all.FirstFailure == "" {
				all.FirstFailure = mine.FirstFailure
			}
		})
	}
	wg.Wait()
	all.ElapsedNS = time.Since(begin).Nanoseconds()
	all.Accepted = len(all.LatenciesUS)
	all.Octets = int64(all.Accepted) * int64(o.size)
	return all, nil
}
