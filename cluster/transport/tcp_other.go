//go:build !linux

package transport

import "time"

// setUserTimeout does nothing where there is no TCP_USER_TIMEOUT: keepalive
// alone then finds a dead peer.
func setUserTimeout(int, time.Duration) error { return nil }
