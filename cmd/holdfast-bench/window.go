package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// A window is a stretch of a load that goes on: nothing in it is a beginning or
// an end, when nodes do other work than under load.
type window struct {
	Octets  int64         `json:"octets"`       // of bodies accepted
	Device  int64         `json:"device_bytes"` // written to the block device
	Elapsed time.Duration `json:"elapsed_ns"`
}

func (w window) perOctet() float64 { return float64(w.Device) / float64(w.Octets) }

const (
	// windowLead is how long a load has been running when a window begins.
	windowLead = time.Second
	// windowOverrun bounds how much longer than planned a window may become:
	// to read a device's counter, all that waits to be written is.
	windowOverrun = 20 * time.Second
	windowPoll    = 5 * time.Millisecond
)

// errEnough ends a load that has been measured.
var errEnough = errors.New("measured")

// A pour is a load that runs beside us until it is stopped.
type pour struct {
	taken  atomic.Int64
	stop   context.CancelCauseFunc
	ended  chan struct{}
	result load.Result
	err    error
}

// pour begins a load.
func (s *scene) pour(ctx context.Context, o load.Options) *pour {
	ctx, stop := context.WithCancelCause(ctx)
	p := &pour{stop: stop, ended: make(chan struct{})}
	o.Taken = &p.taken
	go func() {
		defer close(p.ended)
		p.result, p.err = load.Run(ctx, o)
	}()
	return p
}

// until waits until a condition holds. A load that ends before is an error.
func (p *pour) until(condition func() bool) error {
	tick := time.NewTicker(windowPoll)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-p.ended:
			return errors.Join(fmt.Errorf("the load ended too soon: %v", p.result), p.err)
		}
	}
	return nil
}

// end stops the load and returns what came of it. Messages under way are given
// up. Nothing may have been refused: that costs, too, and no figure would mean
// anything.
func (p *pour) end() (load.Result, error) {
	p.stop(errEnough)
	<-p.ended
	if p.err != nil && !errors.Is(p.err, errEnough) {
		return p.result, p.err
	}
	if p.result.Accepted == 0 || p.result.Failures() > 0 {
		return p.result, fmt.Errorf("load: %v", p.result)
	}
	return p.result, nil
}

// window measures so long of a running load, or until it has taken most octets
// in all; it may have taken that many already.
func (s *scene) window(p *pour, length time.Duration, most int64) (w window, err error) {
	device, err := fleet.DeviceWritten(s.dir)
	if err != nil {
		return w, err
	}
	taken, begin := p.taken.Load(), time.Now()
	if err := p.until(func() bool { return time.Since(begin) >= length || p.taken.Load() >= most }); err != nil {
		return w, err
	}
	after, err := fleet.DeviceWritten(s.dir)
	if err != nil {
		return w, err
	}
	w = window{Octets: p.taken.Load() - taken, Device: after - device, Elapsed: time.Since(begin)}
	if w.Octets <= 0 {
		return w, errors.New("nothing was accepted while it was measured")
	}
	return w, nil
}

// measured runs a load, a window of it measured, and stops it.
func (s *scene) measured(ctx context.Context, o load.Options, length time.Duration) (window, load.Result, error) {
	o.Duration = windowLead + length + windowOverrun
	p := s.pour(ctx, o)
	begin := time.Now()
	err := p.until(func() bool {
		return time.Since(begin) >= windowLead || p.taken.Load() >= o.BytesMax/windowMargin
	})
	var w window
	if err == nil {
		w, err = s.window(p, length, o.BytesMax-o.BytesMax/windowMargin)
	}
	r, ended := p.end()
	return w, r, errors.Join(err, ended)
}

// windowMargin is which part of a load's octets is left out at either end.
const windowMargin = 10
