// Command seeded runs a Go program so that it does the same again.
//
//	seeded SEED PROGRAM [ARGUMENT]...
//
// Go's runtime draws the order of goroutines, of select and of maps from sixteen
// octets that the kernel gives each process (AT_RANDOM, getauxval(3)). This puts
// octets of the seed in their place, between exec and the first instruction, and
// lets the program go on, with one processor, without preemption by time, and
// with a collector that stops the program while it marks, so that its work does not
// depend on how fast the machine is. (Without any, the program would spend a third of
// its time on fresh pages.) What is left to chance is what the program asks the kernel
// for: random octets for keys, and how long system calls take. Exit status: that of the
// program; 64 wrong usage; 70 it could not be started so.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
)

const (
	exitUsage    = 64
	exitSoftware = 70
	// atRandom is the kind of entry of the auxiliary vector, see <elf.h>.
	atRandom = 25
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: seeded SEED PROGRAM [ARGUMENT]...")
		os.Exit(exitUsage)
	}
	seed, err := strconv.ParseUint(os.Args[1], 10, 64)
	if err != nil {
		fmt.Fprintf(os.Stderr, "seeded: seed %q: want a number\n", os.Args[1])
		os.Exit(exitUsage)
	}
	err = run(seed, os.Args[2], os.Args[3:])
	var exited *exec.ExitError
	switch {
	case errors.As(err, &exited):
		os.Exit(max(1, exited.ExitCode()))
	case err != nil:
		fmt.Fprintf(os.Stderr, "seeded: %v\n", err)
		os.Exit(exitSoftware)
	}
}

func run(seed uint64, program string, arguments []string) error {
	c := exec.Command(program, arguments...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=100", "GODEBUG=asyncpreemptoff=1,gcstoptheworld=1,randseednop=0")
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // who traces is a thread
	if err := c.Start(); err != nil {
		return err
	}
	// It has stopped behind its exec.
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(c.Process.Pid, &status, 0, nil); err != nil || !status.Stopped() {
		return errors.Join(fmt.Errorf("%s has not stopped at its start", program), err, c.Process.Kill())
	}
	if err := replace(c.Process.Pid, seed); err != nil {
		return errors.Join(err, c.Process.Kill())
	}
	if err := syscall.PtraceDetach(c.Process.Pid); err != nil {
		return errors.Join(fmt.Errorf("detach: %w", err), c.Process.Kill())
	}
	return c.Wait()
}

// replace writes octets of the seed where a stopped process finds its random ones.
func replace(pid int, seed uint64) error {
	vector, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return fmt.Errorf("auxiliary vector: %w", err)
	}
	for ; len(vector) >= 16; vector = vector[16:] {
		if binary.NativeEndian.Uint64(vector) != atRandom {
			continue
		}
		r := rand.NewPCG(seed, 0x736565646564)
		octets := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, r.Uint64()), r.Uint64())
		if _, err := syscall.PtracePokeData(pid, uintptr(binary.NativeEndian.Uint64(vector[8:])), octets); err != nil {
			return fmt.Errorf("write random octets: %w", err)
		}
		return nil
	}
	return errors.New("the kernel gave no AT_RANDOM")
}
