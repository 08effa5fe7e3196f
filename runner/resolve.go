package runner

import (
	"errors"
	"time"

	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/runner/load"
	"github.com/stepd/stepd/steps"
)

// Options say which promotion to make of a set of documents. What is empty is
// taken from the documents where they are unambiguous.
type Options struct {
	// Stage or Task selects a document by name. At most one is set; neither
	// selects the only Stage, or else the only task.
	Stage string
	Task  string
	// Project is the namespace; default: the documents'.
	Project string
	// StageName is ctx.stage for a task that runs without a Stage.
	StageName string
	// PromotionName is ctx.promotion; default: the Promotion document's, or
	// one made the way Kargo makes it.
	PromotionName string
	// Actor is ctx.meta.promotion.actor; default: the Promotion document's.
	Actor string
	// UIBaseURL is ctx.uiBaseUrl.
	UIBaseURL string
	// Freight names the target Freight among the documents; default: the
	// Promotion document's, or the only one.
	Freight string
	// Images and Commits are laid into the target Freight, or make one, with
	// a Warehouse that subscribes to them.
	Images  []steps.Image
	Commits []steps.GitCommit
	// Vars come after the Stage's own and so win over them. For a task they
	// count as given by the referencing step.
	Vars []kargoapi.Variable
	// Now is used for the promotion's name; zero is the current time.
	Now time.Time
}

// Resolved is a promotion ready to run, but for its WorkDir.
type Resolved struct {
	Promotion Promotion
	// Data serves expression functions from the documents, and from the
	// Freight and Warehouse that Options made.
	Data expr.Data
	// Warnings tell what was assumed.
	Warnings []load.Warning
}

// Resolve makes a Promotion of documents the way Kargo's admission does: it
// applies the CRDs' and the webhooks' rules, collects vars and Freight, and
// inflates tasks. What Kargo refuses is refused, with positions, as
// load.Errors.
func Resolve(set *load.Set, o Options) (*Resolved, error) {
	return nil, errors.ErrUnsupported
}
