// Package distribution has the CNCF distribution registry, which lacks the
// referrers API, as a handler for package registry. It is a package of its own
// because it is heavy to compile.
package distribution

import (
	"context"
	"io"
	"net/http"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // the storage driver named below
	"github.com/sirupsen/logrus"
)

// New returns an empty registry that keeps everything in memory. Its
// background work ends with ctx.
func New(ctx context.Context) http.Handler {
	logrus.SetOutput(io.Discard) // distribution logs through logrus's global logger only
	config := &configuration.Configuration{
		Storage: configuration.Storage{
			"inmemory":    configuration.Parameters{},
			"delete":      configuration.Parameters{"enabled": true},
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.HTTP.Secret = "shared by no other instance"
	config.Log.Level = "error"
	return handlers.NewApp(ctx, config)
}
