package builtin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/steps"
)

type httpDownloadConfig struct {
	httpRequest
	OutPath        string `json:"outPath"`
	AllowOverwrite bool   `json:"allowOverwrite"`
}

const (
	maxDownload            = 100 << 20
	defaultDownloadTimeout = 5 * time.Minute
)

// HTTPDownload is `http-download`: the body of a GET becomes a file, mode 0600.
func HTTPDownload(edge httpedge.Edge) steps.Registration {
	return stateless("http-download", func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		return runHTTPDownload(ctx, sc, edge)
	})
}

func runHTTPDownload(ctx context.Context, sc *steps.Context, edge httpedge.Edge) (steps.Result, error) {
	cfg, err := decodeConfig[httpDownloadConfig](sc)
	if err != nil {
		return failed(err)
	}
	out, err := within(sc, cfg.OutPath)
	if err != nil {
		return errored(err)
	}
	if _, err := os.Lstat(out); err == nil && !cfg.AllowOverwrite {
		return errored(steps.Terminal(fmt.Errorf("file already exists at %s and overwrite is not allowed", cfg.OutPath)))
	}
	ctx, cancel, client, err := cfg.client(ctx, sc, edge, "", defaultDownloadTimeout)
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error creating HTTP client: %w", err)))
	}
	defer cancel()
	req, err := cfg.request(ctx, http.MethodGet, "")
	if err != nil {
		return errored(steps.Terminal(fmt.Errorf("error building HTTP request: %w", err)))
	}
	resp, err := client.Do(req)
	if err != nil {
		return errored(fmt.Errorf("error sending HTTP request: %w", withoutQuery(err)))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return steps.Result{Status: steps.Failed}, fmt.Errorf("HTTP request failed with status %d", resp.StatusCode)
	}
	if resp.ContentLength > maxDownload {
		return errored(steps.Terminal(fmt.Errorf("the download of %d bytes exceeds the limit of %d bytes", resp.ContentLength, maxDownload)))
	}
	err = writeFile(out, 0o600, func(f *os.File) error {
		n, err := io.Copy(f, io.LimitReader(resp.Body, maxDownload+1))
		if err == nil && n > maxDownload {
			err = fmt.Errorf("the download exceeds the limit of %d bytes", maxDownload)
		}
		return err
	})
	if err != nil {
		return errored(fmt.Errorf("error saving the download to %s: %w", cfg.OutPath, relativeTo(sc.WorkDir, err)))
	}
	return succeeded(nil)
}
