// Package ociverified is the step oci-download-verified: it turns an OCI
// reference into verified bytes, or into a refusal with nothing written.
//
// This package has the order of things: resolve once, verify, then fetch by
// digest and write through os.Root. What a signature is worth is decided in
// internal/sigverify, and what a registry may do in internal/ociart.
package ociverified
