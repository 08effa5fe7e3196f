package admission

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"strconv"

	admissionv1 "k8s.io/api/admission/v1"
	kjson "sigs.k8s.io/json"
)

// KeySource has the key that signs tokens now.
type KeySource interface {
	SigningKey() (ed25519.PrivateKey, error)
}

// mutator rewrites the steps of Promotions that are created. A dry run differs
// in nothing: nothing is done but an answer given.
type mutator struct {
	// rewriter has everything but the key.
	rewriter Rewriter
	keys     KeySource
}

// patchOperation is one of RFC 6902.
type patchOperation struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value"`
}

// judge implements judge.
func (m *mutator) judge(_ context.Context, req *admissionv1.AdmissionRequest) verdict {
	if no := expects(req, []string{"promotions"}, admissionv1.Create); no != nil {
		return *no
	}
	object, canonical, err := readPromotion(req.Object.Raw)
	if err != nil {
		return deny(http.StatusUnprocessableEntity, "cannot read the Promotion: %v", err)
	}
	if object.Metadata.Namespace != req.Namespace {
		return deny(http.StatusBadRequest, "the Promotion says that its namespace is %q, the request that it is %q", object.Metadata.Namespace, req.Namespace)
	}
	if no := tooMany(m.ours(object.Spec.Steps)); no != nil {
		return *no
	}
	rewriter := m.rewriter
	if rewriter.Key, err = m.keys.SigningKey(); err != nil {
		return fail(http.StatusServiceUnavailable, "stepd webhook cannot sign the steps: %v; try again in a minute", err)
	}
	steps, changed, err := rewriter.Rewrite(canonical)
	switch {
	case err != nil:
		return deny(http.StatusUnprocessableEntity, "cannot hand the Promotion's steps to stepd: %v", err)
	case !changed:
		return verdict{outcome: outcomeAllowed}
	case len(steps) != len(object.Spec.Steps):
		return fail(http.StatusInternalServerError, "stepd webhook made %d steps of %d", len(steps), len(object.Spec.Steps))
	}
	var patch []patchOperation
	for i, step := range steps {
		if !bytes.Equal(step, object.Spec.Steps[i]) {
			patch = append(patch, patchOperation{"replace", "/spec/steps/" + strconv.Itoa(i), step})
		}
	}
	out := verdict{outcome: outcomeRewritten, rewritten: len(patch)}
	if out.patch, err = json.Marshal(patch); err != nil {
		return fail(http.StatusInternalServerError, "stepd webhook cannot write its patch: %v", err)
	}
	return out
}

// ours returns the steps that are to be rewritten.
func (m *mutator) ours(steps []json.RawMessage) []json.RawMessage {
	var out []json.RawMessage
	for _, step := range steps {
		var name struct {
			Uses string `json:"uses"`
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(step, &name) != nil {
			continue // Rewrite says what is wrong with it
		}
		if _, ok := m.rewriter.Kinds[name.Uses]; ok {
			out = append(out, step)
		}
	}
	return out
}

// promotionObject is what is read of a Promotion.
type promotionObject struct {
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Spec struct {
		Steps []json.RawMessage `json:"steps"`
	} `json:"spec"`
}

// readPromotion decodes a Promotion, taking the names of its fields literally,
// and encodes what it read: whoever decodes that again, in whatever way, reads
// the same.
func readPromotion(raw []byte) (promotionObject, []byte, error) {
	var read, canonical promotionObject
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &read); err != nil {
		return canonical, nil, err
	}
	text, err := json.Marshal(read)
	if err != nil {
		return canonical, nil, err
	}
	err = json.Unmarshal(text, &canonical)
	return canonical, text, err
}
