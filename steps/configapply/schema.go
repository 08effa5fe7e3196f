package configapply

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/fsroot"
	"github.com/stepd/stepd/internal/yamledit"
	"github.com/stepd/stepd/steps"
)

// errSchema marks a config that does not satisfy its own schema.
var errSchema = errors.New("the config does not satisfy its schema")

// maxViolations bounds the error text.
const maxViolations = 20

// schemaSource is the `schema` setting.
type schemaSource struct {
	Path   string          `json:"path"`
	Inline json.RawMessage `json:"inline"`
}

// check validates the document and names each violation by its place in the
// file that is about to be written.
func (s *schemaSource) check(root *fsroot.Root, text []byte, file string, document int) error {
	source := []byte(s.Inline)
	if s.Path != "" {
		var err error
		if source, err = root.ReadFile(s.Path, maxFile); err != nil {
			return fmt.Errorf("schema.path: %w", err)
		}
	}
	schema, err := configschema.Compile(source)
	if err != nil {
		return fmt.Errorf("schema: %w: %w", steps.ErrConfig, err)
	}
	value, err := asHelmReads(text, document)
	if err != nil {
		return fmt.Errorf("cannot read %s for its schema: %w: %w", file, errSchema, err)
	}
	violations := schema.Validate(value)
	if len(violations) == 0 {
		return nil
	}
	more := len(violations) - maxViolations
	if more > 0 {
		violations = violations[:maxViolations]
	}
	lines := make([]string, len(violations))
	for i, v := range violations {
		line, column := yamledit.Position(text, document, pointerParts(v.Pointer))
		lines[i] = fmt.Sprintf("%s:%d:%d: %s", file, line, column, v.Message)
		if v.Hint != "" {
			lines[i] += " (" + v.Hint + ")"
		}
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w:\n%s", errSchema, strings.Join(lines, "\n"))
}

// asHelmReads decodes one document by the rules of YAML 1.1 into JSON types,
// as Helm and Kubernetes do: `on` is true.
func asHelmReads(text []byte, document int) (any, error) {
	dec := yamlv2.NewDecoder(bytes.NewReader(text))
	var v any
	for range document + 1 {
		v = nil
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
	}
	again, err := yamlv2.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out any
	err = yaml.Unmarshal(again, &out)
	return out, err
}

func pointerParts(pointer string) []string {
	if pointer == "" {
		return nil
	}
	parts := strings.Split(pointer[1:], "/")
	for i, p := range parts {
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(p)
	}
	return parts
}
