package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"
)

const (
	// maxSafeInteger is the greatest whole number up to which all are exact in
	// an IEEE 754 double (RFC 8259 section 6).
	maxSafeInteger = 1<<53 - 1
	// maxDepth bounds the nesting of a value; Kubernetes' own limit for
	// decoding JSON is of this order, and no config comes near.
	maxDepth = 200
)

// encoding says what becomes of whole numbers that a double cannot hold.
type encoding bool

const (
	exact   encoding = true  // they are an error
	rounded encoding = false // they are rounded, as Kargo does when it stores state
)

// toStruct encodes m. Values that are not JSON types count as what
// encoding/json makes of them. A nil map is a nil Struct.
func (e encoding) toStruct(m map[string]any) (*structpb.Struct, error) {
	if m == nil {
		return nil, nil
	}
	v, err := e.toValue(m, nil)
	if err != nil {
		return nil, err
	}
	return v.GetStructValue(), nil
}

func (e encoding) toValue(v any, path []string) (*structpb.Value, error) {
	if len(path) > maxDepth {
		return nil, fmt.Errorf("%s: nested more than %d deep", pointer(path[:3]), maxDepth)
	}
	switch v := v.(type) {
	case nil:
		return structpb.NewNullValue(), nil
	case bool:
		return structpb.NewBoolValue(v), nil
	case string:
		if !utf8.ValidString(v) {
			return nil, fmt.Errorf("%s: not valid UTF-8", pointer(path))
		}
		return structpb.NewStringValue(v), nil
	case int:
		return e.integer(int64(v), path)
	case int32:
		return e.integer(int64(v), path)
	case int64:
		return e.integer(v, path)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%s: %v is not a JSON number", pointer(path), v)
		}
		return structpb.NewNumberValue(v), nil
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return e.integer(i, path)
		}
		f, err := strconv.ParseFloat(v.String(), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: number out of range", pointer(path))
		}
		return e.toValue(f, path)
	case []any:
		list := make([]*structpb.Value, len(v))
		for i, item := range v {
			item, err := e.toValue(item, append(path, strconv.Itoa(i)))
			if err != nil {
				return nil, err
			}
			list[i] = item
		}
		return structpb.NewListValue(&structpb.ListValue{Values: list}), nil
	case map[string]any:
		fields := make(map[string]*structpb.Value, len(v))
		for k, item := range v {
			if !utf8.ValidString(k) {
				return nil, fmt.Errorf("%s: a key is not valid UTF-8", pointer(path))
			}
			item, err := e.toValue(item, append(path, k))
			if err != nil {
				return nil, err
			}
			fields[k] = item
		}
		return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
	}
	plain, err := throughJSON(v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pointer(path), err)
	}
	return e.toValue(plain, path)
}

func (e encoding) integer(i int64, path []string) (*structpb.Value, error) {
	if e == exact && (i > maxSafeInteger || i < -maxSafeInteger) {
		return nil, fmt.Errorf("%s: %d would lose digits as a JSON number: make it a string", pointer(path), i)
	}
	return structpb.NewNumberValue(float64(i)), nil
}

// throughJSON reduces v to JSON types.
func throughJSON(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var plain any
	return plain, d.Decode(&plain)
}

// fromStruct decodes s; whole numbers become what whole makes of them. A nil
// Struct is a nil map.
func fromStruct(s *structpb.Struct, whole func(int64) any) map[string]any {
	if s == nil {
		return nil
	}
	m := make(map[string]any, len(s.GetFields()))
	for k, v := range s.GetFields() {
		m[k] = fromValue(v, whole)
	}
	return m
}

func fromValue(v *structpb.Value, whole func(int64) any) any {
	switch v := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		return v.BoolValue
	case *structpb.Value_StringValue:
		return v.StringValue
	case *structpb.Value_NumberValue:
		if f := v.NumberValue; f == math.Trunc(f) && math.Abs(f) <= maxSafeInteger {
			return whole(int64(f))
		}
		return v.NumberValue
	case *structpb.Value_ListValue:
		list := make([]any, len(v.ListValue.GetValues()))
		for i, item := range v.ListValue.GetValues() {
			list[i] = fromValue(item, whole)
		}
		return list
	case *structpb.Value_StructValue:
		return fromStruct(v.StructValue, whole)
	}
	return nil
}

// checkStruct holds what arrived against what toStruct sends: bounded nesting,
// and numbers that JSON has.
func checkStruct(s *structpb.Struct) error { return checkValue(structpb.NewStructValue(s), maxDepth) }

func checkValue(v *structpb.Value, levels int) error {
	if levels < 0 {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	switch kind := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		if math.IsNaN(kind.NumberValue) || math.IsInf(kind.NumberValue, 0) {
			return fmt.Errorf("%v is not a JSON number", kind.NumberValue)
		}
	case *structpb.Value_ListValue:
		for _, item := range kind.ListValue.GetValues() {
			if err := checkValue(item, levels-1); err != nil {
				return err
			}
		}
	case *structpb.Value_StructValue:
		for _, item := range kind.StructValue.GetFields() {
			if err := checkValue(item, levels-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// asInt and asInt64 are what steps.Context.Config and steps.Result.Output
// promise for whole numbers.
func asInt(i int64) any   { return int(i) }
func asInt64(i int64) any { return i }

// pointer renders path as a JSON pointer (RFC 6901); the root is "(root)".
func pointer(path []string) string {
	if len(path) == 0 {
		return "(root)"
	}
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(p))
	}
	return b.String()
}
