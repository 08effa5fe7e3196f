// Command stepd-step-checksum is a plugin with one step: it writes the sha256
// of a file in the work dir beside it.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/stepd/stepd/plugin"
	"github.com/stepd/stepd/steps"
)

const schema = `{"type": "object", "additionalProperties": false, "required": ["path"], "properties": {
	"path": {"type": "string", "minLength": 1, "description": "File in the work dir.", "examples": ["values.yaml"]}}}`

func main() { plugin.Serve(checksum()) }

func checksum() steps.Registration {
	return steps.Registration{Name: "checksum", ConfigSchema: []byte(schema), New: func(steps.Capabilities) steps.Runner { return steps.RunnerFunc(run) }}
}

func run(_ context.Context, sc *steps.Context) (steps.Result, error) {
	root, err := os.OpenRoot(sc.WorkDir) // no path leads out of it
	if err != nil {
		return steps.Result{}, fmt.Errorf("cannot open the work dir: %w", err)
	}
	path := sc.Config["path"].(string) // the schema says so
	content, err := root.ReadFile(path)
	if err != nil {
		return steps.Result{}, steps.Terminal(fmt.Errorf("cannot read %s: %w", path, err))
	}
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	sc.Log.Info("hashed", "path", path, "bytes", len(content))
	return steps.Result{Status: steps.Succeeded, Output: map[string]any{"digest": digest}}, root.WriteFile(path+".sha256", []byte(digest+"\n"), 0o644)
}
