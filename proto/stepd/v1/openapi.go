// Package stepdv1 is the generated code of step.proto, whose head says how it
// is versioned, and its OpenAPI document.
package stepdv1

import _ "embed"

//go:embed step.swagger.json
var openAPI []byte

// OpenAPI returns the OpenAPI 2.0 document of the HTTP/JSON bindings.
func OpenAPI() []byte { return append([]byte(nil), openAPI...) }
