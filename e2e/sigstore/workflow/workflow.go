// Package workflow describes a run of a GitHub Actions workflow: the identity
// that the private Sigstore of the end-to-end suite certifies. It issues
// nothing itself.
package workflow

import "strings"

// GitHub is the issuer of GitHub Actions' own tokens.
const GitHub = "https://token.actions.githubusercontent.com"

// Run is one run of a workflow. The zero value of each field but Repository
// and Ref has the default that its comment names.
type Run struct {
	// Issuer is the OIDC issuer; GitHub by default.
	Issuer string
	// Repository is "owner/name".
	Repository string
	// Workflow is the path of the workflow file that was called,
	// "owner/name/.github/workflows/file.yaml"; by default publish.yaml in
	// Repository. In another repository it is a reusable workflow.
	Workflow string
	// Ref is the git ref, "refs/tags/v1.2.0".
	Ref string
	// Commit is the source commit; forty times "c" by default.
	Commit string
	// Trigger is the event; "push" by default.
	Trigger string
	// RunnerEnvironment is "github-hosted" by default.
	RunnerEnvironment string
}

// WithDefaults returns r with every field set.
func (r Run) WithDefaults() Run {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&r.Issuer, GitHub)
	set(&r.Workflow, r.Repository+"/.github/workflows/publish.yaml")
	set(&r.Commit, strings.Repeat("c", 40))
	set(&r.Trigger, "push")
	set(&r.RunnerEnvironment, "github-hosted")
	return r
}

// Subject is the SAN that Fulcio gives the run: the URL of the called workflow
// at its ref.
func (r Run) Subject() string {
	r = r.WithDefaults()
	return "https://github.com/" + r.Workflow + "@" + r.Ref
}

// Claims are the claims of the run's ID token, without iss, aud and times, as
// documented in "OpenID Connect reference" of GitHub's documentation.
func (r Run) Claims() map[string]string {
	r = r.WithDefaults()
	owner, _, _ := strings.Cut(r.Repository, "/")
	return map[string]string{
		"sub":                   "repo:" + r.Repository + ":ref:" + r.Ref,
		"event_name":            r.Trigger,
		"sha":                   r.Commit,
		"workflow":              "publish",
		"repository":            r.Repository,
		"repository_id":         "4711",
		"repository_owner":      owner,
		"repository_owner_id":   "42",
		"repository_visibility": "private",
		"ref":                   r.Ref,
		"job_workflow_ref":      r.Workflow + "@" + r.Ref,
		"job_workflow_sha":      r.Commit,
		"workflow_ref":          r.Repository + "/.github/workflows/publish.yaml@" + r.Ref,
		"workflow_sha":          r.Commit,
		"runner_environment":    r.RunnerEnvironment,
		"run_id":                "1001",
		"run_attempt":           "1",
	}
}
