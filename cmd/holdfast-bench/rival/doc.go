// Package rival runs a Postfix beside whatever else there is on this host, to be
// measured against. It has its own configuration, queue and address; the host's
// own instance, if there is one, is not touched.
package rival
