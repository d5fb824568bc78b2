package rival

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// JetStreamOptions describe a JetStream of several servers.
type JetStreamOptions struct {
	// Server and Publisher are the binaries that deploy/bench/jetstream builds.
	Server, Publisher string
	// Dir is where everything is made. It must exist.
	Dir string
	// Clients and Routes are the addresses of the servers, as many as there are
	// to be: for clients, and for each other.
	Clients, Routes []string
}

// A JetStream is a cluster of NATS servers, each a process of its own, that
// fsync each write before they acknowledge it.
type JetStream struct {
	o         JetStreamOptions
	processes []*exec.Cmd
}

// A Load is what publishers do to either side: each sends a payload, waits until
// it is acknowledged, and sends the next.
type Load struct {
	Size       int           `json:"size"` // octets of a payload
	Publishers int           `json:"publishers"`
	Duration   time.Duration `json:"duration_ns"`
	OctetsMax  int64         `json:"octets_max"`
}

// Published is what came of a Load.
type Published struct {
	Accepted     int           `json:"accepted"`
	Octets       int64         `json:"octets"`
	Elapsed      time.Duration `json:"elapsed_ns"`
	LatenciesUS  []uint32      `json:"latencies_us"` // of those accepted
	Failed       int           `json:"failed"`
	FirstFailure string        `json:"first_failure,omitempty"`
}

// PerSecond is the accepted payloads per second.
func (p Published) PerSecond() float64 { return float64(p.Accepted) / p.Elapsed.Seconds() }

// natsConfig is a server's configuration: NATS' defaults, but for the fsync
// before an acknowledgement, which is what the comparison is about.
const natsConfig = `server_name: %s
listen: %q
jetstream {
  store_dir: %q
  sync_interval: always
}
cluster {
  name: bench
  listen: %q
  routes: [%s]
}
`

func serverName(i int) string { return fmt.Sprintf("nats-%d", i+1) }

// StartJetStream starts the servers. The publisher waits until they are ready.
func StartJetStream(o JetStreamOptions) (*JetStream, error) {
	j := &JetStream{o: o}
	var routes []string
	for _, address := range o.Routes {
		routes = append(routes, strconv.Quote("nats://"+address))
	}
	for i, address := range o.Clients {
		dir := filepath.Join(o.Dir, serverName(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make directory: %w", err), j.Close())
		}
		file := filepath.Join(dir, "nats.conf")
		text := fmt.Sprintf(natsConfig, serverName(i), address, filepath.Join(dir, "store"), o.Routes[i], strings.Join(routes, ", "))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, errors.Join(fmt.Errorf("write configuration: %w", err), j.Close())
		}
		cmd := exec.Command(o.Server, "-c", file, "-l", filepath.Join(dir, "log"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(fmt.Errorf("start NATS: %w", err), j.Close())
		}
		j.processes = append(j.processes, cmd)
	}
	return j, nil
}

// publishGrace is how much longer than its load a publisher may take: the servers
// have to find each other first.
const publishGrace = 2 * time.Minute

// Publish gives the load to a new stream with a replica on each server.
func (j *JetStream) Publish(ctx context.Context, l Load) (p Published, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.Duration+publishGrace)
	defer cancel()
	var servers []string
	for i, address := range j.o.Clients {
		servers = append(servers, serverName(i)+"="+address)
	}
	cmd := exec.CommandContext(ctx, j.o.Publisher, "-servers", strings.Join(servers, ","),
		"-size", strconv.Itoa(l.Size), "-publishers", strconv.Itoa(l.Publishers),
		"-duration", l.Duration.String(), "-octets-max", strconv.FormatInt(l.OctetsMax, 10))
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return p, fmt.Errorf("publish: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	if err := json.Unmarshal(out, &p); err != nil {
		return p, fmt.Errorf("result of the publisher: %w", err)
	}
	return p, nil
}

// Close ends the servers. Their files are the caller's to remove.
func (j *JetStream) Close() error {
	var errs []error
	for _, cmd := range j.processes {
		errs = append(errs, cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, cmd := range j.processes {
		overdue := time.AfterFunc(startPatience, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // It says how it was ended.
		overdue.Stop()
	}
	j.processes = nil
	return errors.Join(errs...)
}

// Generate gives the load to a daemon that was built with its generator, through
// the socket of that: the payloads enter where the SMTP server would hand over a
// message.
func Generate(ctx context.Context, socket, recipient string, l Load) (p Published, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return p, fmt.Errorf("reach the generator: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(l.Duration + publishGrace)); err != nil {
		return p, err
	}
	order := struct {
		Load
		Recipient string `json:"recipient"`
	}{l, recipient}
	if err := json.NewEncoder(conn).Encode(order); err != nil {
		return p, fmt.Errorf("order payloads: %w", err)
	}
	if err := json.NewDecoder(conn).Decode(&p); err != nil {
		return p, fmt.Errorf("result of the generator: %w", err)
	}
	return p, nil
}
