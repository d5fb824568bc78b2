package node

// Version is the version of this source.
const Version = "0.1.0-dev"
