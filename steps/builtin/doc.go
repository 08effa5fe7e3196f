// Package builtin holds Kargo's own steps, so that a promotion can run where
// there is no Kargo: one file, one test and one schemas/<kind>.json per step.
// Behaviour is that of Kargo v1.11.2, quirks included unless they lose data.
//
// What a step does to the world goes through Edges. The same steps run live
// and dry: only the edges differ, so no step asks which it is. How git, Argo CD
// or a hosting provider is talked to does not belong here; see internal/gitcli,
// internal/argocd and internal/pullrequest.
package builtin
