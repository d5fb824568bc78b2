package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// scheduleFlags are the flags of "domain put" that say how mail is tried.
type scheduleFlags struct {
	retryMin, retryMax, lifetime period
	connections                  uint32
	etrn                         []string
	tls                          string
	pins, names                  []string
	authorities                  string // a file
	bounce                       string
	delayWarning                 period
	xclient                      bool
	callerPins                   []string
	callerUser                   string
	callerPassword               string // a file
}

const (
	flagRetryMin    = "retry-min"
	flagRetryMax    = "retry-max"
	flagLifetime    = "lifetime"
	flagConnections = "connections"
	flagETRN        = "etrn"
	flagTLS         = "tls"
	flagPin         = "tls-pin"
	flagCA          = "tls-ca"
	flagName        = "tls-name"
	flagBounce      = "bounce"
	flagWarning     = "delay-warning"
	flagXClient     = "xclient"
	flagCallerPin   = "caller-pin"
	flagCallerUser  = "caller-user"
	flagCallerFile  = "caller-password-file"
)

func (f *scheduleFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.retryMin, flagRetryMin, "first wait after a 4xx reply (1m for a new domain)")
	flags.Var(&f.retryMax, flagRetryMax, "longest wait after a 4xx reply (1h for a new domain)")
	flags.Var(&f.lifetime, flagLifetime, `how long mail is tried before it is held, "0" for ever (30d for a new domain)`)
	flags.Uint32Var(&f.connections, flagConnections, 0, "the `NUMBER` of connections to the primary at a time, of all nodes together, at the most (20 for a new domain)")
	flags.StringSliceVar(&f.etrn, flagETRN, nil, "`NETWORKS` whose hosts may ask for its mail by ETRN, beside the primary itself")
	flags.StringVar(&f.tls, flagTLS, "", "TLS that the primary must show: `MODE` is opportunistic, require, verify, dane or mta-sts")
	flags.StringSliceVar(&f.pins, flagPin, nil, "with --tls verify: SHA-256 `HASHES` of its keys, in hexadecimal or base64")
	flags.StringVar(&f.authorities, flagCA, "", "with --tls verify: `FILE` with the certificates of its authorities, in PEM; the public ones if neither this nor a pin is given")
	flags.StringVar(&f.bounce, flagBounce, "", "who is told that mail was refused for good, or outlived its lifetime: `POLICY` is aligned, hold or always")
	flags.Var(&f.delayWarning, flagWarning, `after which time senders who asked for it hear that their mail waits, "0" for never`)
	flags.BoolVar(&f.xclient, flagXClient, false, "tell the primary who gave us each message, where it offers XCLIENT")
	flags.StringSliceVar(&f.callerPins, flagCallerPin, nil, "SHA-256 `HASHES` of the keys of TLS client certificates that may call for its mail, in hexadecimal or base64")
	flags.StringVar(&f.callerUser, flagCallerUser, "", "`NAME` by which its mail may be called for (ATRN)")
	flags.StringVar(&f.callerPassword, flagCallerFile, "", "`FILE` whose first line is the password of --caller-user, \"-\" for the standard input")
	flags.StringSliceVar(&f.names, flagName, nil, "with --tls verify: `NAMES` that its certificate may have")
}

// into sets what was given.
func (f *scheduleFlags) into(d *adminpb.Domain, flags *pflag.FlagSet, in io.Reader) error {
	for _, one := range []struct {
		flag string
		is   period
		to   **uint64
	}{{flagRetryMin, f.retryMin, &d.RetryMinMs}, {flagRetryMax, f.retryMax, &d.RetryMaxMs}, {flagLifetime, f.lifetime, &d.LifetimeMs}} {
		if flags.Changed(one.flag) {
			ms := uint64(time.Duration(one.is).Milliseconds())
			if ms < 1000 && one.flag != flagLifetime {
				return fmt.Errorf("--%s is a second at the least", one.flag)
			}
			*one.to = &ms
		}
	}
	if flags.Changed(flagBounce) {
		d.Bounce = &f.bounce
	}
	if flags.Changed(flagWarning) {
		ms := uint64(time.Duration(f.delayWarning).Milliseconds())
		d.DelayWarningMs = &ms
	}
	if flags.Changed(flagXClient) {
		d.Xclient = &f.xclient
	}
	if flags.Changed(flagConnections) {
		d.ConnectionsMax = &f.connections
	}
	if flags.Changed(flagTLS) {
		d.Tls = &adminpb.TLSPolicy{Mode: f.tls, Pins: f.pins, Names: f.names}
		if f.authorities != "" {
			pem, err := os.ReadFile(f.authorities)
			if err != nil {
				return fmt.Errorf("--%s: %w", flagCA, err)
			}
			d.Tls.Authorities = string(pem)
		}
	} else if flags.Changed(flagPin) || flags.Changed(flagCA) || flags.Changed(flagName) {
		return fmt.Errorf("--%s, --%s and --%s go with --%s verify", flagPin, flagCA, flagName, flagTLS)
	}
	switch {
	case flags.Changed(flagCallerUser) && f.callerUser == "" && f.callerPassword == "": // takes it away
		d.Caller = &adminpb.CallerAccount{}
	case f.callerUser != "" && f.callerPassword != "":
		password, err := readPassword(f.callerPassword, in)
		if err != nil {
			return fmt.Errorf("--%s: %w", flagCallerFile, err)
		}
		d.Caller = &adminpb.CallerAccount{User: f.callerUser, Password: password}
	case f.callerUser != "" || f.callerPassword != "":
		return fmt.Errorf("--%s and --%s go together", flagCallerUser, flagCallerFile)
	}
	if flags.Changed(flagCallerPin) {
		d.CallerPins = &adminpb.CallerPins{}
		for _, pin := range f.callerPins {
			if pin != "" { // --caller-pin "" takes all away
				d.CallerPins.Pins = append(d.CallerPins.Pins, pin)
			}
		}
	}
	if flags.Changed(flagETRN) {
		d.Etrn = &adminpb.EtrnNetworks{}
		for _, n := range f.etrn {
			if n != "" { // --etrn "" takes all away
				d.Etrn.Networks = append(d.Etrn.Networks, n)
			}
		}
	}
	return nil
}

// passwordFileMax bounds what is read for a password.
const passwordFileMax = 4 << 10

// readPassword reads a password, which is never an argument: everybody on the host sees
// those. It is the first line of a file.
func readPassword(file string, in io.Reader) (string, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }() // only read from
		in = f
	}
	all, err := io.ReadAll(io.LimitReader(in, passwordFileMax))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(all), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", errors.New("its first line is empty")
	}
	return line, nil
}

// A period is a duration that may be said in days: lifetimes are.
type period time.Duration

// periodMax is longer than any that a server takes.
const periodMax = 10 * 366 * 24 * time.Hour

// Set implements pflag.Value.
func (s *period) Set(text string) error {
	if days, is := strings.CutSuffix(text, "d"); is {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil || time.Duration(n)*24*time.Hour > periodMax {
			return fmt.Errorf("%q: want a number of days, as in 30d", text)
		}
		*s = period(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > periodMax {
		return fmt.Errorf("%q: want a duration, as in 90s, 1m, 1h30m or 30d", text)
	}
	*s = period(d)
	return nil
}

// String implements pflag.Value. Of a zero in this form help says no default.
func (s *period) String() string {
	d := time.Duration(*s)
	switch day := 24 * time.Hour; {
	case d == 0:
		return "0"
	case d%day == 0:
		return strconv.Itoa(int(d/day)) + "d"
	}
	return d.String()
}

// Type implements pflag.Value.
func (*period) Type() string { return "duration" }
