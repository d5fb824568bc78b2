package mailserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tree is a mail server whose package is not installed: its root directory is
// this machine's, with the package laid over it. What the server writes lies in
// memory, but for what it writes in its directory. The mounts go with the mount
// namespace that they were made in.
type tree struct {
	dir    string // the server sees it under the same name
	root   string
	line   []string
	queued func() int
	proc   *exec.Cmd
	ended  chan struct{} // closed when proc has been waited for
}

// newTree makes the tree of a make. accounts are the lines that /etc/passwd has to
// have besides, one to each user and group.
func newTree(m Make, p Place, accounts ...string) (*tree, error) {
	if err := m.Lacking(p.Unpacked); err != nil {
		return nil, err
	}
	unpacked := filepath.Join(p.Unpacked, packages[m])
	memory := filepath.Join(p.base(), "tree")
	s := &tree{dir: p.base(), root: filepath.Join(memory, "root"), queued: func() int { return 0 }}
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	if err := mount("tmpfs", memory, "tmpfs", 0, "mode=755"); err != nil {
		return nil, err
	}
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if out, err := exec.Command("cp", "-a", unpacked+"/.", upper).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy %s: %w\n%s", unpacked, err, out)
	}
	// Not this machine's devices: they are nobody's to write on.
	devices := filepath.Join(s.root, "dev")
	err := errors.Join(
		mount("overlay", s.root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)),
		mount(s.dir, filepath.Join(s.root, s.dir), "", unix.MS_BIND, ""),
		mount("proc", filepath.Join(s.root, "proc"), "proc", 0, ""),
		mount("tmpfs", devices, "tmpfs", 0, "mode=755"))
	if err != nil {
		return nil, err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		device := filepath.Join(devices, name)
		if err := errors.Join(unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(1, minor))), os.Chmod(device, 0o666)); err != nil {
			return nil, err
		}
	}
	var groups []string
	for _, a := range accounts {
		fields := strings.Split(a, ":")
		groups = append(groups, fields[0]+":x:"+fields[3]+":")
	}
	return s, errors.Join(s.append("/etc/passwd", accounts), s.append("/etc/group", groups),
		s.write("/etc/resolv.conf", "nameserver "+p.Resolver+"\n", 0o644))
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// Close takes the tree down. The server does not run.
func (s *tree) Close() error {
	var errs []error
	for _, target := range []string{"root/dev", "root/proc", filepath.Join("root", s.dir), "root", ""} {
		if err := unix.Unmount(filepath.Join(s.dir, "tree", target), unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount: %w", err))
		}
	}
	return errors.Join(errs...)
}

// path is where a file of the tree is for us.
func (s *tree) path(name string) string { return filepath.Join(s.root, name) }

func (s *tree) write(name, text string, mode os.FileMode) error {
	return errors.Join(os.MkdirAll(filepath.Dir(s.path(name)), 0o755),
		os.WriteFile(s.path(name), []byte(text), mode), os.Chmod(s.path(name), mode))
}

func (s *tree) append(name string, lines []string) error {
	old, err := os.ReadFile(s.path(name))
	if err != nil {
		return err
	}
	return s.write(name, string(old)+strings.Join(lines, "\n")+"\n", 0o644)
}

// Log is the name of the log.
func (s *tree) Log() string { return filepath.Join(s.dir, "log") }

// Queued counts the messages in the queue.
func (s *tree) Queued() int { return s.queued() }

// Start starts the server.
func (s *tree) Start() error {
	out, err := os.OpenFile(s.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	proc := exec.Command(s.line[0], s.line[1:]...)
	proc.Dir = "/"
	proc.Stdout, proc.Stderr = out, out
	proc.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := proc.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.line[0], err)
	}
	ended := make(chan struct{})
	go func() { _ = proc.Wait(); close(ended) }()
	s.proc, s.ended = proc, ended
	return nil
}

// Stop ends the server and all that it has started.
func (s *tree) Stop() error {
	if s.proc == nil {
		return nil
	}
	err := s.proc.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(goneTime):
		err = errors.New("it does not end")
	}
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("stop %s: %w\n%s", s.line[0], err, Tail(s))
	}
	return errors.Join(err, s.Signal(syscall.SIGKILL))
}

// Signal sends a signal to all processes in the tree.
func (s *tree) Signal(what syscall.Signal) error {
	if err := signal("root", s.root, what); err != nil {
		return err
	}
	if what == syscall.SIGKILL && s.proc != nil {
		<-s.ended
		s.proc = nil
	}
	return nil
}
