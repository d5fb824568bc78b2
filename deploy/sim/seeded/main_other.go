//go:build !linux

// Command seeded runs a Go program so that it does the same again, on Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "seeded: this works on Linux only")
	os.Exit(69)
}
