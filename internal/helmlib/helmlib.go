// Package helmlib answers the requests of internal/helmrun with Helm's library.
// Only cmd/stepd-helm links it. It talks to no cluster, runs no program, and
// reads no configuration but the request's; it writes to the chart's directory.
package helmlib

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/stepd/stepd/internal/helmrun"
)

const (
	// maxMemory bounds what a chart may make Helm allocate, in bytes.
	maxMemory = 2 << 30
	// maxFile bounds every file that is written, in bytes.
	maxFile = 256 << 20
)

// Serve answers one request. The error is of the exchange; what goes wrong with
// the chart is in the answer. The bounds it sets hold for the whole process.
func Serve(in io.Reader, out io.Writer) error {
	if err := bound(maxMemory, maxFile); err != nil {
		return fmt.Errorf("cannot bound memory and files: %w", err)
	}
	var request helmrun.Request
	if err := json.NewDecoder(in).Decode(&request); err != nil {
		return fmt.Errorf("cannot read the request: %w", err)
	}
	var response helmrun.Response
	manifests, err := answer(request)
	if err != nil {
		response.Error = err.Error()
	} else {
		response.Manifests = manifests
	}
	return json.NewEncoder(out).Encode(response)
}

func answer(r helmrun.Request) (_ []helmrun.Manifest, err error) {
	defer func() {
		// Helm is known to panic on charts of unexpected shapes.
		if p := recover(); p != nil {
			err = fmt.Errorf("helm panicked: %v", p)
		}
	}()
	if r.Dependencies != "" {
		if err := fetchDependencies(r); err != nil {
			return nil, err
		}
	}
	if r.Render == nil {
		return nil, nil
	}
	return render(r.Chart, *r.Render)
}
