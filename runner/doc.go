// Package runner is the promotion engine: the registry of step kinds, task
// inflation and the engine loop with Kargo's semantics. What surrounds every
// step (schema validation, timeout, panic recovery, redaction) is in guard.
//
// What a document looks like belongs in kargoapi, where it comes from in load,
// what `${{ }}` means in expr, what is wrong with it before it runs in lint.
// Steps themselves are in steps/…; the engine knows them only as
// steps.Registration values handed to it by main.
package runner
