package rival

import (
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed shim/slowsync.c
var slowSyncSource string

// SlowSync compiles a library into dir, and returns the environment with which
// each fsync and fdatasync of a process and of its children takes longer by
// delay. It needs gcc and the headers of libc.
func SlowSync(ctx context.Context, dir string, delay time.Duration) (map[string]string, error) {
	library := filepath.Join(dir, "slowsync.so")
	cmd := exec.CommandContext(ctx, "gcc", "-std=gnu11", "-Wall", "-Werror", "-O2", "-shared", "-fPIC",
		fmt.Sprintf("-DDELAY_NS=%dL", delay.Nanoseconds()), "-x", "c", "-o", library, "-")
	cmd.Stdin = strings.NewReader(slowSyncSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc (apt-get install gcc libc6-dev): %w: %s", err, strings.TrimSpace(string(out)))
	}
	return map[string]string{"LD_PRELOAD": library}, nil
}
