// Package rival runs what Holdfast is measured against on this host: a Postfix,
// or a JetStream of three NATS servers. Each has its own configuration, files and
// addresses; the host's own instances, if there are any, are not touched.
package rival
