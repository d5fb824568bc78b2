package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// TestExitCode: a service manager tells failures apart by them.
func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), 70},
		{fmt.Errorf("open: %w", node.ErrDisk), 74},
		{fmt.Errorf("open: %w", node.ErrConfig), 78},
		{errors.Join(fmt.Errorf("start: %w", node.ErrDisk), errors.New("and not closed")), 74},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}
