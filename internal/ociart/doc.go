// Package ociart reads artifacts from OCI registries that may be hostile.
//
// It resolves references to digests, fetches manifests and blobs by digest,
// and lists referrers, over HTTP as the OCI distribution specification v1.1
// describes it. Every byte it returns was hashed, every size is checked before
// and while reading, every request has a deadline, listings have page and
// entry limits, and credentials stay with the host they are for. Challenge and
// token handling is oras-go's; the four read endpoints are called directly,
// because the limits belong around each of them and because resolving a tag
// must not cost a request of its own.
//
// What a signature is worth does not belong here (see internal/sigverify), and
// neither do pushing and unpacking: bytes are handed over as they are.
package ociart
