package node

import "time"

const (
	// tickEvery is how often log time advances. Waits are as exact as this.
	tickEvery = 5 * time.Second
	// orphanAge is how long a body is kept that no log entry has named. Nothing
	// that could still name it stays undecided for nearly as long.
	orphanAge = time.Hour
)
