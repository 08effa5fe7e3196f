// Package proto holds the wire definitions of stepd and what keeps their
// generated code fresh. The definitions are in stepd/v1/step.proto, whose head
// states the versioning rules; the generated Go is beside them.
package proto

//go:generate go tool -modfile=../tools/go.mod buf lint
//go:generate go tool -modfile=../tools/go.mod buf breaking --against stepd.v1.binpb
//go:generate go tool -modfile=../tools/go.mod buf generate
