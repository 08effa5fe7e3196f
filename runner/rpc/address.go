package rpc

import (
	"fmt"
	"net"
	"strings"
)

// Address is where a server listens, and where a client finds it.
type Address struct {
	// Network is "unix" or "tcp".
	Network string
	// Address is a socket's path or host:port.
	Address string
}

// ParseAddress reads "unix:PATH" or "HOST:PORT". An empty host is an error:
// listening on every interface has to be said, as 0.0.0.0 or [::].
func ParseAddress(s string) (*Address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		if path == "" {
			return nil, fmt.Errorf("cannot use the address %q: the socket's path is missing", s)
		}
		return &Address{Network: "unix", Address: path}, nil
	}
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %q: want unix:PATH or HOST:PORT: %w", s, err)
	}
	if host == "" {
		return nil, fmt.Errorf("cannot use the address %q: name the host, 127.0.0.1 or 0.0.0.0", s)
	}
	return &Address{Network: "tcp", Address: s}, nil
}

// String is what ParseAddress reads.
func (a *Address) String() string {
	if a.Network == "unix" {
		return "unix:" + a.Address
	}
	return a.Address
}
