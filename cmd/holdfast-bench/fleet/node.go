package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A Node is one node of a fleet. Its addresses and files stay the same however
// often its process is started.
//
// Invariant: process is not nil while the operating system's process runs or
// has not been waited for.
type Node struct {
	Name    string
	Dir     string // of the node's files
	SMTP    string
	Cluster string
	Gossip  string
	Socket  string // admin socket
	Config  string // configuration file
	Log     string // file that standard output and error are appended to

	bin         string
	arguments   []string
	environment []string

	mu      sync.Mutex
	process *process
	peakRSS int64 // of the processes of this node that have ended, at least
	fallen  error // the process ended without being told to
	starts  int
}

// A process is one run of holdfastd.
type process struct {
	cmd     *exec.Cmd
	told    bool          // a signal was sent: its end is expected
	done    chan struct{} // closed when it has been waited for
	sampler chan struct{} // closed to end sampling
	peakRSS int64
}

// Start starts the node's process.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		return fmt.Errorf("%s runs already", n.Name)
	}
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", n.Name, err)
	}
	defer log.Close()
	line := append(append([]string{}, n.arguments...), n.bin, "run", "--config", n.Config)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = n.Dir
	cmd.Env = append(os.Environ(), n.environment...)
	// A group of its own, so that Ctrl-C at the terminal reaches the user of
	// the fleet alone, who then stops the nodes; and no node survives it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.starts++
	p := &process{cmd: cmd, done: make(chan struct{}), sampler: make(chan struct{})}
	n.process = p
	go n.sample(p)
	go n.wait(p)
	return nil
}

// A Fall is the end of a process that nobody told to end, as an error that wraps
// *exec.ExitError where it exited with a code.
type Fall struct {
	At  time.Time
	err error
}

func (f *Fall) Error() string { return f.err.Error() }
func (f *Fall) Unwrap() error { return f.err }

// wait waits for the end of p.
func (n *Node) wait(p *process) {
	err := p.cmd.Wait()
	close(p.sampler)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peakRSS = max(n.peakRSS, p.peakRSS)
	if !p.told && n.fallen == nil {
		n.fallen = &Fall{At: time.Now(), err: fmt.Errorf("%s ended by itself: %w\n%s", n.Name, orSuccess(err), n.LogTail())}
	}
	n.process = nil
	close(p.done)
}

type endError struct{}

func (endError) Error() string { return "exit status 0" }

func orSuccess(err error) error {
	if err == nil {
		return endError{}
	}
	return err
}

// Running reports whether the node's process runs.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process != nil
}

// Starts returns how often the node was started.
func (n *Node) Starts() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// Fallen returns a *Fall when a process of the node ended without being told
// to, with the end of its log.
func (n *Node) Fallen() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fallen
}

// TakeFallen is Fallen, for a caller that deals with it: it is not reported
// again.
func (n *Node) TakeFallen() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	fallen := n.fallen
	n.fallen = nil
	return fallen
}

// Kill ends the process with SIGKILL and waits for its end. A node that does
// not run is an error: the kill would prove nothing.
func (n *Node) Kill() error {
	p, err := n.signal(syscall.SIGKILL)
	if p == nil {
		return fmt.Errorf("kill %s: it does not run", n.Name)
	}
	if err == nil || errors.Is(err, os.ErrProcessDone) { // one that has just ended by itself is no more, either
		<-p.done
	}
	return err
}

// Stop ends the process with SIGTERM, or with SIGKILL when that takes too long,
// which is an error. A node that does not run is stopped.
func (n *Node) Stop() error {
	p, err := n.signal(syscall.SIGTERM)
	if p == nil {
		return err
	}
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %v of SIGTERM\n%s", n.Name, stopPatience, n.LogTail())
	}
	// The process was waited for: its state is final.
	if code := p.cmd.ProcessState.ExitCode(); err == nil && code != 0 {
		return fmt.Errorf("%s ended with %v after SIGTERM\n%s", n.Name, p.cmd.ProcessState, n.LogTail())
	}
	return err
}

// signal tells the process to end, and returns it; nil when none runs.
func (n *Node) signal(s syscall.Signal) (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.process
	if p == nil {
		return nil, nil
	}
	p.measure()
	if err := p.cmd.Process.Signal(s); err != nil {
		return p, fmt.Errorf("signal %s: %w", n.Name, err)
	}
	p.told = true // who has ended already was not told to
	return p, nil
}

const (
	tailOctets = 16 << 10
	tailLines  = 15
)

// LogTail returns the last lines of the node's log.
func (n *Node) LogTail() string {
	f, err := os.Open(n.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailOctets {
		f.Seek(-tailOctets, 2)
	}
	data := make([]byte, tailOctets)
	read, _ := f.Read(data)
	lines := bytes.Split(bytes.TrimSpace(data[:read]), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-tailLines):], []byte("\n")))
}

// PID returns the process id of the node, 0 when it does not run.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return 0
	}
	return n.process.cmd.Process.Pid
}
