//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packages is where .ci/mailservers unpacks what cannot be installed beside Postfix.
func packages() string {
	if dir := os.Getenv("HOLDFAST_MAILSERVERS"); dir != "" {
		return dir
	}
	return "../../bin/mailservers"
}

// A tree is a mail server whose package is not installed: its root directory is
// this machine's, with the package laid over it. What the server writes lies in
// memory and goes with the test, but for what it writes in the test's directory.
type tree struct {
	t    *testing.T
	name string
	dir  string // within the test's; the server sees it under the same name
	root string
	line []string
	proc *exec.Cmd
}

// newTree makes the tree of a package for a test that works in dir. accounts are
// the lines that /etc/passwd has to have besides, one to each user and group.
func newTree(t *testing.T, dir, name, debian string, accounts ...string) *tree {
	t.Helper()
	unpacked := filepath.Join(packages(), debian)
	if _, err := os.Stat(unpacked); err != nil {
		t.Fatalf("%s is missing (.ci/mailservers bin/mailservers fetches it): %v", debian, err)
	}
	s := &tree{t: t, name: name, dir: filepath.Join(dir, name), root: filepath.Join(dir, name, "tree", "root")}
	memory := filepath.Dir(s.root)
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	s.must(os.MkdirAll(memory, 0o755))
	s.mount("tmpfs", memory, "tmpfs", 0, "mode=755")
	for _, d := range []string{upper, work, s.root} {
		s.must(os.Mkdir(d, 0o755))
	}
	if out, err := exec.Command("cp", "-a", unpacked+"/.", upper).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", unpacked, err, out)
	}
	s.mount("overlay", s.root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work))
	s.mount(s.dir, filepath.Join(s.root, s.dir), "", unix.MS_BIND, "")
	s.mount("proc", filepath.Join(s.root, "proc"), "proc", 0, "")
	// Not this machine's devices: they are nobody's to write on.
	devices := filepath.Join(s.root, "dev")
	s.mount("tmpfs", devices, "tmpfs", 0, "mode=755")
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		device := filepath.Join(devices, name)
		s.must(unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(1, minor))))
		s.must(os.Chmod(device, 0o666))
	}
	s.append("/etc/passwd", accounts)
	var groups []string
	for _, a := range accounts {
		fields := strings.Split(a, ":")
		groups = append(groups, fields[0]+":x:"+fields[3]+":")
	}
	s.append("/etc/group", groups)
	s.write("/etc/resolv.conf", "nameserver "+addressDNS+"\n", 0o644)
	return s
}

// mount undoes itself before the directory goes that it lies in.
func (s *tree) mount(source, target, kind string, flags uintptr, data string) {
	s.t.Helper()
	s.must(os.MkdirAll(target, 0o755))
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		s.t.Fatalf("mount %s: %v", target, err)
	}
	s.t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			s.t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func (s *tree) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// path is where a file of the tree is for us.
func (s *tree) path(name string) string { return filepath.Join(s.root, name) }

func (s *tree) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	s.must(os.MkdirAll(filepath.Dir(s.path(name)), 0o755))
	s.must(os.WriteFile(s.path(name), []byte(text), mode))
	s.must(os.Chmod(s.path(name), mode))
}

func (s *tree) append(name string, lines []string) {
	s.t.Helper()
	old, err := os.ReadFile(s.path(name))
	s.must(err)
	s.write(name, string(old)+strings.Join(lines, "\n")+"\n", 0o644)
}

func (s *tree) log() string { return filepath.Join(s.dir, "log") }

func (s *tree) start() {
	s.t.Helper()
	out, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	s.must(err)
	defer out.Close()
	s.proc = exec.Command(s.line[0], s.line[1:]...)
	s.proc.Dir = "/"
	s.proc.Stdout, s.proc.Stderr = out, out
	s.proc.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.proc.Start(); err != nil {
		s.t.Fatalf("start %s: %v", s.name, err)
	}
	s.t.Cleanup(s.stop)
}

// stop ends the server and all that it has started.
func (s *tree) stop() {
	s.t.Helper()
	if s.proc == nil {
		return
	}
	ended := make(chan error, 1)
	go func(p *exec.Cmd) { ended <- p.Wait() }(s.proc)
	err := s.proc.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		err = errors.New("it does not end")
	}
	// The group outlives its first process.
	killed := syscall.Kill(-s.proc.Process.Pid, syscall.SIGKILL)
	s.proc = nil
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("stop %s: %v (%v)\n%s", s.name, err, killed, s.tail())
	}
}

func (s *tree) tail() string {
	data, _ := os.ReadFile(s.log())
	lines := strings.Split(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}
