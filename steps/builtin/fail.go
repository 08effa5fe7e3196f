package builtin

import (
	"context"
	"errors"
	"fmt"

	"github.com/stepd/stepd/steps"
)

// Fail is `fail`: it always fails, with the configured message.
func Fail() steps.Registration { return stateless("fail", runFail) }

func runFail(_ context.Context, sc *steps.Context) (steps.Result, error) {
	cfg, err := decodeConfig[struct {
		Message string `json:"message"`
	}](sc)
	if err != nil {
		return failed(err)
	}
	if cfg.Message == "" {
		return failed(errors.New("failed"))
	}
	return failed(fmt.Errorf("failed: %s", cfg.Message))
}
