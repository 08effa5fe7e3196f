// Package sigverify decides whether an artifact, known by its digest, was
// signed by somebody a policy names.
//
// A Policy says who (identities of keyless signers, public keys) and what has
// to be proven. Verify finds candidates in every form Cosign writes, puts each
// through sigstore-go and this package's own checks, and answers with a
// Verdict, or a *RefusedError that says for each candidate why it was refused.
// Candidates are hostile: they are capped in number and size, they cannot
// crash or stall the process, and their text is quoted wherever it is shown.
//
// How bytes come from a registry belongs in internal/ociart; what is done with
// a verified artifact belongs to the caller.
package sigverify
