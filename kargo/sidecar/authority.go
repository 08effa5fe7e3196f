package sidecar

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/stepd/stepd/kargo/cluster"
	"github.com/stepd/stepd/kargo/wire"
	"github.com/stepd/stepd/runner/kargoapi"
)

// call is a request that has proven which step of which Promotion it is for.
type call struct {
	claims    wire.Claims
	token     string
	kind      *kind
	promotion *kargoapi.Promotion
	attempt   wire.Attempt
	// config is encoded.
	config json.RawMessage
	dir    workDir
	// secrets are what no answer may repeat.
	secrets []string
}

func (c *call) key() stepKey { return stepKey{c.promotion.UID, c.claims.Alias} }

// refusal is a request that must not have what it asks for: the step fails.
type refusal struct {
	code    int // HTTP
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// later is a request that cannot be judged now. Kargo is asked to come again,
// which it does until the step's retry.timeout.
type later struct{ message string }

func (l *later) Error() string { return l.message }

func notNow(format string, args ...any) error { return &later{fmt.Sprintf(format, args...)} }

// token returns the claims of the request's token. What they name is only
// believed once the API server agrees.
func (s *Server) token(r *http.Request) (wire.Claims, string, error) {
	headers := r.Header.Values(wire.HeaderToken)
	if len(headers) != 1 {
		return wire.Claims{}, "", refuse(http.StatusUnauthorized, "the request has no token: only steps that stepd's webhook has rewritten may call")
	}
	token, ok := strings.CutPrefix(headers[0], wire.Bearer(""))
	if !ok {
		return wire.Claims{}, "", refuse(http.StatusUnauthorized, "the request has no token: only steps that stepd's webhook has rewritten may call")
	}
	keys, err := s.Keys()
	if err != nil {
		s.Log.Error("cannot read the public keys", "error", err)
		return wire.Claims{}, "", notNow("the sidecar cannot read the public keys that tokens are checked with; its log says why")
	}
	claims, err := wire.Verify(keys, token)
	switch {
	case errors.Is(err, wire.ErrUnknownKey):
		return wire.Claims{}, "", refuse(http.StatusUnauthorized, "%v: the sidecar needs the public key of the webhook that made this Promotion, besides newer ones", err)
	case err != nil:
		return wire.Claims{}, "", refuse(http.StatusUnauthorized, "%v", err)
	case claims.Namespace == "" || claims.Promotion == "" || claims.Alias == "" || claims.Kind == "":
		return wire.Claims{}, "", refuse(http.StatusUnauthorized, "the token does not say what it is for")
	}
	return claims, token, nil
}

// authorise decides whether a request may run a step, in this order: the token
// is one of ours; the request is for the kind and the config that the token
// names; the Promotion is there, is running, and holds this step with this very
// token; the caller could read the project's key; the work dir is Kargo's.
//
// The Promotion can be read by many, and with it the token. The key can be read
// by those who can read the project's Secrets, and by Kargo for a step of that
// project.
func (s *Server) authorise(ctx context.Context, r *http.Request, claims wire.Claims, token string, body wire.Request) (*call, error) {
	c := &call{claims: claims, token: token, attempt: body.Attempt, config: body.Config}
	c.attempt.StartedAt = c.attempt.StartedAt.UTC().Truncate(time.Second)
	if named := r.PathValue("kind"); named != claims.Kind {
		return nil, refuse(http.StatusForbidden, "the token is for a step of kind %q, not %.100q", claims.Kind, named)
	}
	var ok bool
	if c.kind, ok = s.kinds[claims.Kind]; !ok {
		return nil, refuse(http.StatusNotFound, "this sidecar has no step of kind %q; is it older than the webhook?", claims.Kind)
	}
	_, skeleton, err := wire.DecodeConfig(body.Config)
	if errors.Is(err, wire.ErrMalformed) {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if skeleton != claims.Skeleton {
		return nil, refuse(http.StatusForbidden, "the config is not the one that the token is for")
	}
	if c.promotion, err = s.runningPromotion(ctx, claims); err != nil {
		return nil, err
	}
	if err := holds(c.promotion, claims, token); err != nil {
		return nil, err
	}
	key, err := s.projectKey(ctx, claims.Namespace)
	if err != nil {
		return nil, err
	}
	if sent := r.Header.Values(wire.HeaderProjectKey); len(sent) != 1 || !equal(sent[0], key) {
		return nil, refuse(http.StatusForbidden, "the request does not hold the key of project %q: Kargo reads it from Secret %q of the Promotion's own project", claims.Namespace, wire.ProjectKeySecret)
	}
	c.secrets = []string{token, key}
	if err := checkAttempt(c.attempt); err != nil {
		return nil, err
	}
	c.dir, err = openWorkDir(s.WorkRoot, c.promotion.UID)
	return c, err
}

// runningPromotion reads the Promotion that the claims name. One that is about
// to run is waited for, and so is the permission to read it.
func (s *Server) runningPromotion(ctx context.Context, claims wire.Claims) (*kargoapi.Promotion, error) {
	for until := time.Now().Add(pendingWait); ; {
		p, err := s.Cluster.Promotion(ctx, claims.Namespace, claims.Promotion)
		forbidden := errors.Is(err, cluster.ErrForbidden)
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			return nil, refuse(http.StatusNotFound, "there is no Promotion %q in namespace %q", claims.Promotion, claims.Namespace)
		case forbidden && time.Now().After(until):
			return nil, refuse(http.StatusForbidden, "the sidecar may not read Promotions: it needs the service account of Kargo's controller (%v)", err)
		case forbidden:
			// An API server that has just started may not know its roles yet.
			p = &kargoapi.Promotion{}
		case err != nil:
			s.Log.Warn("cannot read a Promotion", "namespace", claims.Namespace, "promotion", claims.Promotion, "error", err)
			return nil, notNow("the sidecar cannot ask the API server for the Promotion yet: %v", err)
		}
		if p.Status.Phase != "" && p.Status.Phase != kargoapi.PromotionPending {
			switch err := stopped(p, p.UID); {
			case errors.Is(err, errAborting):
				return nil, notNow("%v", err)
			case err != nil:
				return nil, refuse(http.StatusConflict, "%v", err)
			}
			return p, nil
		}
		if p.AbortRequested() {
			return nil, notNow("%v", errAborting)
		}
		if !forbidden && time.Now().After(until) {
			return nil, notNow("the Promotion is not running yet")
		}
		select {
		case <-ctx.Done():
			return nil, notNow("the Promotion is not running yet")
		case <-time.After(pendingPoll):
		}
	}
}

// errAborting is why nothing is done for a Promotion that Kargo is about to
// abort. It is no failure of the step: Kargo would show that, and not that
// somebody aborted the Promotion, which it looks for only between requests.
var errAborting = errors.New("the Promotion is being aborted")

// stopped says why nothing may be done any more for the Promotion that had a
// UID; nil if it goes on.
func stopped(p *kargoapi.Promotion, uid string) error {
	switch {
	case p.UID != uid || uid == "":
		return errors.New("the Promotion was replaced by another of the same name")
	case p.DeletionTimestamp != nil:
		return errors.New("the Promotion is being deleted")
	case p.AbortRequested():
		return errAborting
	case p.Status.Phase != kargoapi.PromotionRunning:
		return fmt.Errorf("the Promotion is not running: its phase is %s", p.Status.Phase)
	}
	return nil
}

// holds checks that the API object has the step, and has it with this token. A
// token of another Promotion, or one that was never in a Promotion, is nothing.
func holds(p *kargoapi.Promotion, claims wire.Claims, token string) error {
	var found []*kargoapi.PromotionStep
	for i := range p.Spec.Steps {
		if p.Spec.Steps[i].As == claims.Alias {
			found = append(found, &p.Spec.Steps[i])
		}
	}
	if p.Namespace != claims.Namespace || p.Name != claims.Promotion || len(found) != 1 || found[0].Uses != "http" {
		return refuse(http.StatusNotFound, "the Promotion has no such step %q", claims.Alias)
	}
	var config struct {
		Headers []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"headers"`
	}
	if err := json.Unmarshal(found[0].Config, &config); err != nil {
		return refuse(http.StatusForbidden, "step %q of the Promotion is not one that stepd's webhook has rewritten", claims.Alias)
	}
	var tokens []string
	for _, h := range config.Headers {
		if strings.EqualFold(h.Name, wire.HeaderToken) {
			tokens = append(tokens, h.Value)
		}
	}
	if len(tokens) != 1 || !equal(tokens[0], wire.Bearer(token)) {
		return refuse(http.StatusForbidden, "the token is not the one of step %q of the Promotion", claims.Alias)
	}
	return nil
}

// projectKey reads what the header with the project's key has to hold.
func (s *Server) projectKey(ctx context.Context, namespace string) (string, error) {
	var data map[string][]byte
	secret, err := s.Cluster.Secret(ctx, namespace, wire.ProjectKeySecret)
	switch {
	case err == nil:
		data = secret.Values()
	case errors.Is(err, cluster.ErrForbidden):
		return "", refuse(http.StatusForbidden, "the sidecar may not read Secrets of namespace %q: it needs the service account of Kargo's controller (%v)", namespace, err)
	case !errors.Is(err, cluster.ErrNotFound):
		s.Log.Warn("cannot read a project's key", "namespace", namespace, "error", err)
		return "", notNow("the sidecar cannot ask the API server for the project's key yet")
	}
	key, err := wire.ProjectKeyHeader(namespace, data)
	if err != nil {
		return "", refuse(http.StatusForbidden, "%v", err)
	}
	return key, nil
}

// checkAttempt refuses an attempt that cannot have started when it says: it
// would have more time than it may.
func checkAttempt(a wire.Attempt) error {
	if a.StartedAt.After(time.Now().Add(maxClockSkew)) {
		return refuse(http.StatusBadRequest, "the step is said to start in the future, at %s", a.StartedAt.Format(time.RFC3339))
	}
	return nil
}

// equal compares secrets without telling how much of them agrees.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
