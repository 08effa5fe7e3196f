// Package load reads Kargo documents from files, directories and standard
// input, and remembers where everything in them was written.
//
// YAML is read as Kubernetes reads it (sigs.k8s.io/yaml: YAML 1.1 scalars),
// strictly: an unknown field, a duplicate key or a value of the wrong type is
// an error with file, line and column. Kinds Kargo does not define are kept as
// raw documents with a warning.
//
// What the documents mean, and whether Kargo would admit them, is decided in
// package runner and, with more patience, in package runner/lint.
package load
