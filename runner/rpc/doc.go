// Package rpc carries the step contract over gRPC: Server offers
// steps.Registration values as proto/stepd/v1's StepService, Client turns a
// StepService back into steps.Registration values. A Runner got from a Client
// behaves like the one behind the Server; package contracttest holds them to it.
//
// What is shared by all transports belongs here: addresses, the encoding of values,
// contexts, results and errors, log and progress streams, limits and the
// confinement of work dirs. Processes belong in runner/plugin; listeners, TLS,
// metrics and the HTTP/JSON gateway in runner/rpc/serve.
package rpc
