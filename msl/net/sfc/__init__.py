"""The SFC fabric on one host: the eBPF proxy, the routes that feed it, and the sockets of its NSFs."""
