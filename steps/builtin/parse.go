package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/steps"
)

// YAMLParse is `yaml-parse`: outputs from the first document of a YAML file,
// read by the rules of YAML 1.1 with every number a float.
func YAMLParse() steps.Registration {
	return stateless("yaml-parse", parseStep("YAML", func(text []byte) (any, error) {
		if len(text) == 0 {
			return nil, errors.New("could not parse empty YAML file")
		}
		var document any
		if err := yaml.Unmarshal(text, &document); err != nil {
			return nil, fmt.Errorf("could not parse YAML file: %w", err)
		}
		return document, nil
	}))
}

// JSONParse is `json-parse`: outputs from a JSON file.
func JSONParse() steps.Registration {
	return stateless("json-parse", parseStep("JSON", func(text []byte) (any, error) {
		var document any
		if err := json.Unmarshal(text, &document); err != nil {
			return nil, fmt.Errorf("could not parse JSON file: %w", err)
		}
		return document, nil
	}))
}

// TOMLParse is `toml-parse`: outputs from a TOML file. Whole numbers are
// integers; dates and times become strings, where Kargo's next step panics.
func TOMLParse() steps.Registration {
	return stateless("toml-parse", parseStep("TOML", func(text []byte) (any, error) {
		if len(text) == 0 {
			return nil, errors.New("could not parse empty TOML file")
		}
		document := map[string]any{}
		if err := toml.Unmarshal(text, &document); err != nil {
			return nil, fmt.Errorf("could not parse TOML file: %w", err)
		}
		return document, nil
	}))
}

// parseStep is what the parse steps have in common.
func parseStep(format string, parse func([]byte) (any, error)) steps.RunnerFunc {
	return func(_ context.Context, sc *steps.Context) (steps.Result, error) {
		cfg, err := decodeConfig[struct {
			Path    string             `json:"path"`
			Outputs []outputExpression `json:"outputs"`
		}](sc)
		if err != nil {
			return failed(err)
		}
		file, err := within(sc, cfg.Path)
		if err != nil {
			return errored(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return errored(fmt.Errorf("error reading %s file %q: %w", format, cfg.Path, relativeTo(sc.WorkDir, err)))
		}
		document, err := parse(text)
		if err != nil {
			return errored(err)
		}
		outputs, err := extractOutputs(document, cfg.Outputs)
		if err != nil {
			return errored(err)
		}
		return succeeded(outputs)
	}
}
