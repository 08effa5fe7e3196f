package rpc

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/steps"
)

func TestToStruct(t *testing.T) {
	deep := any("bottom")
	for range maxDepth + 1 {
		deep = []any{deep}
	}
	for name, tc := range map[string]struct {
		reason string
		in     any
		exact  any    // what comes back, whole numbers as int64
		err    string // what an exact encoding says
		round  any    // what a rounded one makes of it, when it differs
	}{
		"whole":       {reason: "whole numbers stay whole", in: 42, exact: int64(42)},
		"float":       {reason: "a float without fraction is the same JSON number", in: 42.0, exact: int64(42)},
		"fraction":    {reason: "fractions stay", in: 0.1, exact: 0.1},
		"safe":        {reason: "2^53-1 is the last exact whole number", in: int64(maxSafeInteger), exact: int64(maxSafeInteger)},
		"unsafe":      {reason: "2^53+1 would become another number", in: int64(1<<53 + 1), err: "/v: 9007199254740993 would lose digits", round: float64(1 << 53)},
		"json.Number": {reason: "numbers decoded with UseNumber are exact too", in: json.Number("9007199254740993"), err: "lose digits", round: float64(1 << 53)},
		"exponent":    {reason: "a json.Number may be a fraction", in: json.Number("1e-3"), exact: 0.001},
		"huge":        {reason: "a number no double holds is no JSON number for us", in: json.Number("1e999"), err: "out of range"},
		"NaN":         {reason: "NaN is not JSON", in: math.NaN(), err: "not a JSON number"},
		"UTF-8":       {reason: "a proto string is UTF-8", in: "\xff", err: "/v: not valid UTF-8"},
		"key":         {reason: "so is a key", in: map[string]any{"\xff": 1}, err: "/v: a key"},
		"pointer":     {reason: "errors name the path as a JSON pointer", in: map[string]any{"a/b~": []any{"\xff"}}, err: "/v/a~1b~0/0"},
		"typed":       {reason: "typed values count as their JSON", in: []string{"a"}, exact: []any{"a"}},
		"struct":      {reason: "structs too", in: struct{ A int }{1}, exact: map[string]any{"A": int64(1)}},
		"chan":        {reason: "what has no JSON is an error", in: make(chan int), err: "/v: json"},
		"deep":        {reason: "nesting is bounded", in: deep, err: "nested"},
		"null":        {reason: "null is a value", in: nil, exact: nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := exact.toStruct(map[string]any{"v": tc.in})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%s: error %v, want %q", tc.reason, err, tc.err)
				}
			} else if err != nil {
				t.Fatalf("%s: %v", tc.reason, err)
			} else if diff := cmp.Diff(tc.exact, fromStruct(s, asInt64)["v"]); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			if tc.round != nil {
				s, err := rounded.toStruct(map[string]any{"v": tc.in})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.round, fromStruct(s, asInt64)["v"]); diff != "" {
					t.Errorf("%s, rounded (-want +got):\n%s", tc.reason, diff)
				}
			}
		})
	}
	if s, err := exact.toStruct(nil); s != nil || err != nil {
		t.Errorf("a nil map: got %v, %v; want nil, so that absent stays absent", s, err)
	}
}

func TestHostileValues(t *testing.T) {
	nested := func(levels int) *structpb.Struct {
		v := structpb.NewBoolValue(true)
		for range levels - 1 {
			v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
		}
		return &structpb.Struct{Fields: map[string]*structpb.Value{"v": v}}
	}
	number := func(f float64) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{"v": structpb.NewNumberValue(f)}}
	}
	for _, tc := range []struct {
		reason string
		in     *structpb.Struct
		ok     bool
	}{
		{"absent", nil, true},
		{"as deep as is sent", nested(maxDepth), true},
		{"deeper", nested(maxDepth + 1), false},
		{"a number", number(1), true},
		{"no number", number(math.NaN()), false},
		{"beyond numbers", number(math.Inf(-1)), false},
		{"a value without a kind", &structpb.Struct{Fields: map[string]*structpb.Value{"v": {}, "w": nil}}, true},
	} {
		if err := checkStruct(tc.in); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.reason, err)
		}
		if _, err := resultFromProto(&stepdv1.StepResult{Status: stepdv1.Status_STATUS_SUCCEEDED, Output: tc.in}); (err == nil) != tc.ok || !tc.ok && !steps.IsTerminal(err) {
			t.Errorf("%s as an output: %v", tc.reason, err)
		}
	}
	// What toStruct sends is what checkStruct accepts.
	if _, err := exact.toStruct(fromStruct(nested(maxDepth), asInt64)); err != nil {
		t.Error(err)
	}
	if _, err := exact.toStruct(fromStruct(nested(maxDepth+1), asInt64)); err == nil {
		t.Error("more was sent than is accepted")
	}
}

// FuzzValues: whatever bytes arrive as a Struct decode without panic, and
// what decodes survives another round unchanged.
func FuzzValues(f *testing.F) {
	for _, seed := range []map[string]any{{}, {"a": []any{1.5, nil, true, "x", map[string]any{"b": -3.0}}}} {
		s, err := structpb.NewStruct(seed)
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s structpb.Struct
		if proto.Unmarshal(b, &s) != nil {
			return
		}
		m := fromStruct(&s, asInt64)
		again, err := exact.toStruct(m)
		if err != nil {
			return // nested too deep, NaN
		}
		if diff := cmp.Diff(m, fromStruct(again, asInt64)); diff != "" {
			t.Errorf("not the same after a round trip (-first +second):\n%s", diff)
		}
	})
}
