// Package plugin is the host of step plugins: programs beside stepd that serve
// the StepService to it alone. It pins them by digest (Index), starts them when
// a step needs them, confines them to the promotion's work dir, watches them,
// and ends them on every path (Host).
//
// A plugin process belongs to one work dir, so that what one promotion's step
// can reach does not depend on which other promotions run. Author-facing code
// is in the public package plugin; how a child is confined in
// internal/sandbox; what is said over the connection in runner/rpc.
//
// go-plugin's SecureConfig hashes a path and then runs that path. Here the
// bytes that were hashed are the bytes that run (sandbox.Load), which is why
// it is not set.
package plugin
