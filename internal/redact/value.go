package redact

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// maxDepth bounds Value against cyclic values; no document is nested deeper.
const maxDepth = 1000

// Value returns a deep copy of v with every secret masked: strings, byte
// slices, map keys, and the exported fields of structs. The type of v is kept;
// an error among the values becomes a masked error.
func (r *Redactor) Value(v any) any {
	if v == nil || r == nil {
		return v
	}
	if err, ok := v.(error); ok {
		return r.Error(err)
	}
	return r.value(reflect.ValueOf(v), 0).Interface()
}

func (r *Redactor) value(v reflect.Value, depth int) reflect.Value {
	if depth > maxDepth {
		return reflect.Zero(v.Type())
	}
	switch v.Kind() {
	case reflect.String:
		out := reflect.New(v.Type()).Elem()
		out.SetString(r.String(v.String()))
		return out
	case reflect.Interface:
		out := reflect.New(v.Type()).Elem()
		if v.IsNil() {
			return out
		}
		if err, ok := v.Interface().(error); ok {
			if masked := reflect.ValueOf(r.Error(err)); masked.Type().AssignableTo(v.Type()) {
				out.Set(masked)
				return out
			}
		}
		out.Set(r.value(v.Elem(), depth+1))
		return out
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(r.value(v.Elem(), depth+1))
		return out
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			out.SetMapIndex(r.value(it.Key(), depth+1), r.value(it.Value(), depth+1))
		}
		return out
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return reflect.ValueOf([]byte(r.String(string(v.Bytes())))).Convert(v.Type())
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(r.value(v.Index(i), depth+1))
		}
		return out
	case reflect.Array, reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		if v.Kind() == reflect.Array {
			for i := range v.Len() {
				out.Index(i).Set(r.value(v.Index(i), depth+1))
			}
			return out
		}
		for i := range v.NumField() {
			if f := out.Field(i); f.CanSet() {
				f.Set(r.value(v.Field(i), depth+1))
			}
		}
		return out
	}
	return v
}

// rendered returns v unless one of the ways in which a log handler may print it
// shows a secret; then it returns the masked text. It catches what Value cannot
// reach, such as the unexported password inside a *url.URL.
func (r *Redactor) rendered(v any) any {
	v = r.Value(v)
	for _, text := range []string{fmt.Sprintf("%+v", v), asJSON(v)} {
		if masked := r.String(text); masked != text {
			return masked
		}
	}
	return v
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "" // then no JSON handler can print it either
	}
	return string(b)
}
