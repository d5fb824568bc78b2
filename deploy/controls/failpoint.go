package controls

// A Failpoint is told that a node has come to a moment between two things of which
// a crash may keep one from the other. It may end the node and must then keep who
// called it until that is done. It is called by many goroutines, some of which
// hold locks. Nil: nobody is told.
type Failpoint func(moment string)

// At tells of a moment.
func (f Failpoint) At(moment string) {
	if f != nil {
		f(moment)
	}
}
