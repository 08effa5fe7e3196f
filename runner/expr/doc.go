// Package expr is Kargo's expression language: `${{ }}` and `${% %}` templates
// in strings and config blocks, their typing rules, variables, and every
// function a promotion can call.
//
// It evaluates; it knows nothing of steps' order or outcome. The functions get
// their data through Data, and the time from a clock, so that a run can be
// repeated exactly.
package expr

import (
	"context"
	"encoding/json"

	"github.com/stepd/stepd/runner/kargoapi"
)

// Data is what functions read. Every method returns nil and no error for
// something that does not exist, unless its comment says otherwise.
type Data interface {
	// Warehouse returns a Warehouse of the project.
	Warehouse(ctx context.Context, project, name string) (*kargoapi.Warehouse, error)
	// ConfigMap returns the data of a ConfigMap in a namespace.
	ConfigMap(ctx context.Context, namespace, name string) (map[string]string, error)
	// SharedConfigMap returns the data of a ConfigMap among the shared resources.
	SharedConfigMap(ctx context.Context, name string) (map[string]string, error)
	// Secret returns the data of a Secret in a namespace.
	Secret(ctx context.Context, namespace, name string) (map[string][]byte, error)
	// SharedSecret returns the data of a Secret among the shared resources, if
	// it is labelled as generic.
	SharedSecret(ctx context.Context, name string) (map[string][]byte, error)
	// FreightMetadata and StageMetadata return status.metadata.
	FreightMetadata(ctx context.Context, project, freight string) (map[string]json.RawMessage, error)
	StageMetadata(ctx context.Context, project, stage string) (map[string]json.RawMessage, error)
}
