package gitrepo

import (
	"context"
	"io"
)

// The services of a Git server.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// wire carries requests of the two services to one repository. Every call
// stands for itself: over HTTP it is a request, over SSH a session.
type wire interface {
	// advertise opens the service's advertisement, asking for protocol v2 when
	// v2 is set; the server may answer with v0.
	advertise(ctx context.Context, service string, v2 bool) (io.ReadCloser, error)
	// call sends one request and opens the answer. With v2 set, a server that
	// speaks v0 is an error.
	call(ctx context.Context, service string, v2 bool, request []byte) (io.ReadCloser, error)
	// assumeV2 tells whether a request may be sent before the server's
	// capabilities are known; it saves a round trip.
	assumeV2() bool
}
