// Package steps is the contract between a promotion engine and the steps it
// runs. Read this package first.
//
// It holds the Runner interface, what a Runner is given (Context), what it
// answers (Result, TerminalError) and how it is described to an engine
// (Registration). It imports the standard library only, so that a step can be
// written, and tested, against nothing but this package. Behaviour shared by
// all steps (schema validation, timeout, panic recovery, redaction) does not
// belong here: it wraps a Runner, in package runner.
//
// Names and JSON keys are those of Kargo v1.11.2 (pkg/promotion and
// api/v1alpha1), whose in-process runners have the same shape.
package steps

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"
)

// Runner executes one step of a promotion.
//
// Run is called once per attempt. It must honour ctx, confine file access to
// Context.WorkDir, and be prepared to be called again for a step that already
// ran: an engine that was restarted starts over.
//
// A returned error means the attempt failed: Result.Status is then Errored
// unless it is Failed. Wrap the error in a TerminalError to rule out retries.
// Status Running without an error asks to be called again after
// Result.RetryAfter.
type Runner interface {
	Run(ctx context.Context, sc *Context) (Result, error)
}

// RunnerFunc lets a function be a Runner.
type RunnerFunc func(ctx context.Context, sc *Context) (Result, error)

// Run calls f.
func (f RunnerFunc) Run(ctx context.Context, sc *Context) (Result, error) { return f(ctx, sc) }

// Context is what a step is told about the promotion it is part of. The step
// owns it: maps are deep copies.
type Context struct {
	// UIBaseURL is the base URL of Kargo's UI; empty when there is none.
	UIBaseURL string
	// WorkDir is the absolute path of the directory shared by all steps of the
	// promotion. Earlier steps write it, so it is never a source of trust.
	WorkDir string
	// SharedState holds the output of every step that ran so far, by alias.
	SharedState map[string]any
	// Alias is the step's full alias, "task::step" inside a task.
	Alias string
	// Config is the step's evaluated configuration. It has passed the step's
	// schema. Values are JSON types, except that whole numbers are int.
	Config map[string]any
	// ConfigFile is the absolute path of the file the step was written in and
	// is what relative trust paths in Config are relative to. It is empty when
	// the step did not come from a file.
	ConfigFile string

	// Project, Stage and Promotion name the promotion's Kargo resources.
	Project   string
	Stage     string
	Promotion string
	// PromotionActor is who created the promotion; may be empty.
	PromotionActor string
	// Rollback tells whether the promotion is a rollback.
	Rollback bool

	FreightRequests    []FreightRequest
	Freight            FreightCollection
	TargetFreightRef   FreightReference
	TargetFreightAlias string

	// Log receives the step's log records. It is never nil and redacts known
	// secrets.
	Log *slog.Logger
}

// Status is the outcome of one attempt of a step.
type Status string

// The statuses Kargo knows (api/v1alpha1 PromotionStepStatus).
const (
	Succeeded Status = "Succeeded"
	// Failed is a refusal or another outcome that a user has to deal with.
	Failed Status = "Failed"
	// Errored is a technical failure.
	Errored Status = "Errored"
	// Running asks to be called again.
	Running Status = "Running"
	Skipped Status = "Skipped"
	Aborted Status = "Aborted"
)

// Valid tells whether s is one of the six statuses.
func (s Status) Valid() bool {
	switch s {
	case Succeeded, Failed, Errored, Running, Skipped, Aborted:
		return true
	}
	return false
}

// Result is what one attempt of a step produced.
type Result struct {
	Status  Status
	Message string
	// Output is stored as the step's state. Values must be JSON types: nil,
	// bool, float64, int64, string, []any, map[string]any.
	Output map[string]any
	// HealthCheck, if not nil, is evaluated by the Stage after the promotion.
	HealthCheck *HealthCheck
	// RetryAfter says how long to wait before the next attempt of a Running
	// step. Nil leaves it to the engine.
	RetryAfter *time.Duration
}

// HealthCheck names a kind of health check and its input.
type HealthCheck struct {
	Kind  string
	Input map[string]any
}

// TerminalError marks an error that a retry cannot mend.
type TerminalError struct{ Err error }

// Error implements error.
func (e *TerminalError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap returns the marked error.
func (e *TerminalError) Unwrap() error { return e.Err }

// Terminal marks err as terminal; nil stays nil.
func Terminal(err error) error {
	if err == nil {
		return nil
	}
	return &TerminalError{Err: err}
}

// IsTerminal tells whether err, or an error it wraps, is terminal.
func IsTerminal(err error) bool {
	var t *TerminalError
	return errors.As(err, &t)
}

// Reasons for which a step can refuse, beyond failing. An engine maps them to
// exit codes; a step wraps them.
var (
	// ErrRefused marks a verification refusal: nothing acceptable was signed.
	ErrRefused = errors.New("verification refused")
	// ErrConflict marks a change that somebody else's change stands in the way
	// of, or that a newer promotion has superseded.
	ErrConflict = errors.New("conflict")
	// ErrConfig marks a configuration the step cannot accept.
	ErrConfig = errors.New("invalid configuration")
)

// Detailer is implemented by errors that carry structured detail for machine
// readable reports, such as the rejected[] list of a verification refusal.
// The value must be JSON encodable and free of secrets.
type Detailer interface {
	error
	Detail() map[string]any
}

// Capability is a privilege that a step declares and an engine grants.
type Capability string

// Capabilities known to Kargo v1.11.2 (pkg/promotion/registry.go).
const (
	AccessArgoCD          Capability = "access-argocd"
	AccessControlPlane    Capability = "access-control-plane"
	AccessCredentials     Capability = "access-credentials"
	AccessGitUser         Capability = "access-git-user"
	TaskOutputPropagation Capability = "task-output-propagation"
)

// AllCapabilities lists the capabilities that there are.
func AllCapabilities() []Capability {
	return []Capability{AccessArgoCD, AccessControlPlane, AccessCredentials, AccessGitUser, TaskOutputPropagation}
}

// Capabilities are the objects behind the capabilities that were granted. A
// field is nil unless its capability was declared and granted.
type Capabilities struct {
	Credentials CredentialSource
	GitUser     GitUserSource
	// ArgoCD is for Argo CD's resources: Applications, ApplicationSets and
	// AppProjects.
	ArgoCD ClusterSource
	// ControlPlane is for Kargo's resources in the promotion's project.
	ControlPlane ClusterSource
}

// Only returns the part of c that is behind the capabilities declared.
func (c Capabilities) Only(declared []Capability) Capabilities {
	var out Capabilities
	for _, d := range declared {
		switch d {
		case AccessCredentials:
			out.Credentials = c.Credentials
		case AccessGitUser:
			out.GitUser = c.GitUser
		case AccessArgoCD:
			out.ArgoCD = c.ArgoCD
		case AccessControlPlane:
			out.ControlPlane = c.ControlPlane
		}
	}
	return out
}

// Names lists the capabilities that c holds an object for. It is never nil.
func (c Capabilities) Names() []Capability {
	names := []Capability{}
	if c.ArgoCD != nil {
		names = append(names, AccessArgoCD)
	}
	if c.ControlPlane != nil {
		names = append(names, AccessControlPlane)
	}
	if c.Credentials != nil {
		names = append(names, AccessCredentials)
	}
	if c.GitUser != nil {
		names = append(names, AccessGitUser)
	}
	return names
}

// CredentialType selects among Kargo's kinds of repository credentials.
type CredentialType string

// Values of the Secret label kargo.akuity.io/cred-type.
const (
	CredentialsGit   CredentialType = "git"
	CredentialsHelm  CredentialType = "helm"
	CredentialsImage CredentialType = "image"
)

// Credentials authenticate against one repository. They are never logged.
type Credentials struct {
	Username      string
	Password      string
	SSHPrivateKey string
}

// CredentialSource finds the credentials of a repository.
type CredentialSource interface {
	// Get returns the credentials that project may use for repoURL, or nil
	// for anonymous access.
	Get(ctx context.Context, project string, typ CredentialType, repoURL string) (*Credentials, error)
}

// GitUser is an author and committer identity.
type GitUser struct {
	Name  string
	Email string
	// SigningKey is an armored OpenPGP or OpenSSH private key; empty for
	// unsigned commits.
	SigningKey string
	// SigningKeyType is "gpg" or "ssh"; empty with no key.
	SigningKeyType string
}

// GitUserSource resolves the system's git identity.
type GitUserSource interface {
	GitUser(ctx context.Context) (GitUser, error)
}

// ClusterSource reaches the API server of a Kubernetes cluster. Its credentials
// stay with whoever made it.
type ClusterSource interface {
	// Client returns a client for a promotion of project. Of a request's URL only
	// path and query count, so that any host will do:
	//
	//	client.Get("https://cluster/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/shop")
	//
	// Bodies have at most 3 MiB and answers 8 MiB. Requests beyond the
	// capability, and watches, fail without being sent. With client-go, use the
	// client's Transport as rest.Config.Transport.
	Client(project string) *http.Client
}

// SecretSource reads the Secrets of a project, for secretRef settings.
type SecretSource interface {
	// Secret returns the decoded data of a Secret in the project's namespace,
	// or an error that names it when it does not exist.
	Secret(ctx context.Context, project, name string) (map[string][]byte, error)
}

// Metadata are a step's defaults and needs.
type Metadata struct {
	// DefaultTimeout applies when the step's retry.timeout is absent; zero is
	// no timeout.
	DefaultTimeout time.Duration
	// DefaultErrorThreshold applies when retry.errorThreshold is absent; zero
	// means 1.
	DefaultErrorThreshold uint32
	// RequiredCapabilities are granted to the factory.
	RequiredCapabilities []Capability
}

// Registration describes one kind of step to an engine.
type Registration struct {
	// Name is the value of `uses`.
	Name string
	// New makes the Runner of one attempt.
	New func(Capabilities) Runner
	Metadata
	// ConfigSchema and OutputSchema are JSON Schemas, draft 2020-12. A nil
	// ConfigSchema accepts any object.
	ConfigSchema []byte
	OutputSchema []byte
}
