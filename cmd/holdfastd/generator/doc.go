// Package generator submits payloads of its own on demand. It is for benchmarks
// against systems that are no mail servers: the payloads enter where the SMTP
// server hands over a message. Only a daemon built with the tag rig has it,
// and no release is.
package generator
