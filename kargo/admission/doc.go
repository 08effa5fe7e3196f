// Package admission is `stepd webhook`: what makes unmodified Kargo run stepd's
// steps, and what refuses configs that could not run.
//
// It rewrites the steps of a Promotion when that is created (rewrite.go),
// checks the steps of Stages and tasks when those are applied, answers the API
// server's AdmissionReviews for both, and keeps the certificate and the signing
// keys that this takes, from files or in the cluster. It fails closed: whatever
// goes wrong, the answer is a refusal.
//
// The configurations under which the API server calls it are in
// testdata/webhook-configurations.yaml; what is installed is made of them.
//
// What is inside a rewritten step belongs in kargo/wire, the endpoint that such
// a step calls in kargo/sidecar.
package admission
