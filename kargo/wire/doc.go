// Package wire is what the admission webhook and the sidecar say to each other
// through Kargo, which passes it on without knowing.
//
// The webhook turns a step of ours into a step of Kargo's own kind `http`. Kargo
// evaluates that step's config, and so the expressions of the user that the
// webhook put into its body, and posts the body to the sidecar:
//
//	webhook                        Kargo                         sidecar
//	EncodeConfig, Sign  ──step──▶  evaluates, POST  ──Request──▶  Verify, DecodeConfig
//	criteria            ◀─────────  judges            ◀──Answer──
//
// What arrives is, byte for byte, the config that Kargo would have computed for
// a step that it knew itself, or the same failure.
//
// The package is pure. Who may call, whether the step exists and what it does
// is the sidecar's; which steps are rewritten is the webhook's.
package wire
