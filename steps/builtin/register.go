package builtin

import (
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/steps"
)

// Edges are the ways by which steps reach the world outside their work dir.
// Whoever fills them in decides whether steps act or only record.
type Edges struct {
	// Git is where git steps clone from and push to. Required.
	Git gitremote.Remotes
	// GitPolicy is how git-push brings in others' commits; AlwaysRebase if
	// empty.
	GitPolicy IntegrationPolicy
	// Wait pauses between a step's own attempts; nil waits for real.
	Wait Wait
}

// Registrations lists every built-in step on the given edges.
func Registrations(e Edges) []steps.Registration {
	return []steps.Registration{
		ComposeOutput(),
		Copy(),
		Fail(),
		GitClone(e.Git),
		GitCommit(),
		GitPush(e.Git, e.GitPolicy, e.Wait),
	}
}
