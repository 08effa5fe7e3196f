package admission

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// Timing of the work on the cluster.
const (
	syncInterval = 30 * time.Second
	// syncRetry is the interval until everything is in place.
	syncRetry    = 2 * time.Second
	syncDeadline = 20 * time.Second
	// maxPasses is how often others may get in between before one interval.
	maxPasses = 10
	// authorityDelay is how long a new authority is in the caBundle before it
	// issues: far longer than API servers take to notice.
	authorityDelay = 10 * time.Minute
)

// SigningPolicy says how long signing keys live. Replicas have to agree on it.
type SigningPolicy struct {
	// Rotation is how old a key gets before there is a next one.
	Rotation time.Duration
	// Propagation is how long the next public key is published before the key
	// signs: longer than a mounted ConfigMap takes to change in every pod.
	Propagation time.Duration
	// Retention is how long the public key stays published after the key signed
	// for the last time: longer than any Promotion exists before it is over.
	Retention time.Duration
}

// Check returns an error for a policy under which keys would not be known where
// they have to be.
func (p SigningPolicy) Check() error {
	switch {
	case p.Propagation < 0 || p.Retention <= 0 || p.Rotation <= 0:
		return errors.New("the times of signing keys have to be positive")
	case p.Rotation <= p.Propagation:
		return fmt.Errorf("keys would be replaced (after %s) before they sign (after %s)", p.Rotation, p.Propagation)
	}
	return nil
}

// ManagedServing are the names that a managed serving certificate is for.
type ManagedServing struct {
	// Names are DNS names and IP addresses.
	Names []string
	// Configuration is the name of the MutatingWebhookConfiguration and of the
	// ValidatingWebhookConfiguration whose webhooks get the caBundle.
	Configuration string
}

// ManagedSigning is where managed signing keys are published.
type ManagedSigning struct {
	SigningPolicy
	// Namespace and ConfigMap name the ConfigMap with the public keys, a PEM
	// file each.
	Namespace, ConfigMap string
}

// ManagedOptions say what is kept where.
type ManagedOptions struct {
	Client dynamic.Interface
	// Namespace and Secret name the Secret with everything private.
	Namespace, Secret string
	// Serving is nil if the certificate comes from elsewhere.
	Serving *ManagedServing
	// Signing is nil if the signing key comes from elsewhere.
	Signing *ManagedSigning
	// Now is the clock; nil is the system's.
	Now func() time.Time
	Log *slog.Logger
}

// Managed keeps the serving certificate and the signing keys in the cluster. Any
// number of replicas do so at once and without a leader: each looks every 30
// seconds, and what one changes the Secret's resource version keeps the others
// from changing too. It never creates an object, so that its rights can be
// limited to its own: get and update of the Secret, the ConfigMap and the two
// webhook configurations, by name.
type Managed struct {
	ManagedOptions

	mu      sync.Mutex
	serving *tls.Certificate
	// trusted tells whether the webhooks had the certificate's authority in their
	// caBundle when last seen.
	trusted bool
	signing state
	failed  error // of the last synchronisation
}

// NewManaged returns a Managed that has nothing yet; see Run.
func NewManaged(o ManagedOptions) *Managed {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Managed{ManagedOptions: o}
}

// Run keeps everything in place until ctx is done. Whatever fails is tried again.
func (m *Managed) Run(ctx context.Context) {
	said := ""
	for {
		now := ""
		if err := m.sync(ctx); err != nil && ctx.Err() == nil {
			now = err.Error()
		}
		switch now {
		case said:
		case "":
			m.Log.Info("certificate and keys are in order again")
		default:
			m.Log.Error("cannot keep certificate and keys in the cluster", "error", now)
		}
		said = now
		wait := syncInterval
		if m.Ready() != nil {
			wait = syncRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Certificate implements CertificateSource.
func (m *Managed) Certificate() (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.serving == nil {
		return nil, m.lacks("no serving certificate")
	}
	return m.serving, nil
}

// SigningKey implements KeySource.
func (m *Managed) SigningKey() (ed25519.PrivateKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Signing == nil {
		return nil, errors.New("signing keys are not managed")
	}
	i := m.signing.signs(m.Now(), m.Signing.SigningPolicy)
	if i < 0 {
		return nil, m.lacks("no published signing key")
	}
	return parsePrivateKey([]byte(m.signing.signing[i].Private))
}

// Ready says why the webhook cannot be called, or nil.
func (m *Managed) Ready() error {
	if m.Signing != nil {
		if _, err := m.SigningKey(); err != nil {
			return err
		}
	}
	if m.Serving == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.serving == nil:
		return m.lacks("no serving certificate")
	case !m.Now().Before(m.serving.Leaf.NotAfter):
		return m.lacks("the serving certificate has expired")
	case !m.trusted:
		return m.lacks("the webhook configurations lack the caBundle")
	}
	return nil
}

// lacks adds to what is missing why that may be. The caller holds the lock.
func (m *Managed) lacks(what string) error {
	if m.failed != nil {
		return fmt.Errorf("%s: %w", what, m.failed)
	}
	return errors.New(what + " yet")
}

// sync brings the cluster's objects in order and adopts what is in them. It is
// over when it finds nothing to change.
func (m *Managed) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncDeadline)
	defer cancel()
	err := fmt.Errorf("others changed the same objects %d times", maxPasses)
	for range maxPasses {
		var settled bool
		if settled, err = m.pass(ctx); err != nil || settled {
			break
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = err
	return err
}

// pass looks at everything and makes one round of changes. settled means that
// there was nothing to change.
func (m *Managed) pass(ctx context.Context) (settled bool, err error) {
	c, err := m.observe(ctx)
	if err != nil {
		return false, err
	}
	data, err := secretData(c.secret)
	if err != nil {
		return false, fmt.Errorf("cannot use the Secret %s/%s: %w", m.Namespace, m.Secret, err)
	}
	s, err := decodeState(data)
	if err != nil {
		return false, fmt.Errorf("cannot use the Secret %s/%s: %w", m.Namespace, m.Secret, err)
	}
	now := m.Now()
	what := seen{trusts: c.trusts, published: c.published}
	next := s
	if m.Serving != nil {
		if next, err = next.renewServing(now, m.Serving.Names, authorityDelay, what); err != nil {
			return false, err
		}
	}
	if m.Signing != nil {
		if next, err = next.renewSigning(now, m.Signing.SigningPolicy, what); err != nil {
			return false, err
		}
	}
	want, err := next.data()
	if err != nil {
		return false, err
	}
	if changed := setSecretData(c.secret, data, want); changed {
		m.Log.Info("renewing certificate or keys", "secret", m.Namespace+"/"+m.Secret)
		return false, m.update(ctx, secrets, m.Namespace, c.secret)
	}
	// Asked before anything is injected: only what was read is known to be so.
	issuer := s.servingIssuer()
	trusted := issuer >= 0 && c.trusts(s.authorities[issuer].cert)
	settled = true
	for _, o := range c.configurations {
		if setCABundle(o.object, s.bundle()) {
			settled = false
			m.Log.Info("injecting the caBundle", "kind", o.object.GetKind(), "name", o.object.GetName())
			err = errors.Join(err, m.update(ctx, o.resource, "", o.object))
		}
	}
	if m.Signing != nil && setPublicKeys(c.configMap, s.signing) {
		settled = false
		m.Log.Info("publishing the public keys", "configMap", m.Signing.Namespace+"/"+m.Signing.ConfigMap, "keys", len(s.signing))
		err = errors.Join(err, m.update(ctx, configMaps, m.Signing.Namespace, c.configMap))
	}
	m.adopt(s, trusted)
	return settled, err
}

// adopt makes what is in the Secret this replica's own.
func (m *Managed) adopt(s state, trusted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Serving != nil {
		m.serving, m.trusted = s.serving, trusted
	}
	m.signing = s
}

// update writes an object as it was read and changed. Somebody who was faster
// is no error: the next pass looks at what they did.
func (m *Managed) update(ctx context.Context, resource schema.GroupVersionResource, namespace string, o *unstructured.Unstructured) error {
	_, err := m.Client.Resource(resource).Namespace(namespace).Update(ctx, o, metav1.UpdateOptions{FieldManager: "stepd-webhook"})
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("cannot update %s %q: %w", resource.Resource, o.GetName(), err)
	}
	return nil
}

//nolint:gochecknoglobals // constants, if Go had such
var (
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	mutating   = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
	validating = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
)

// observation is what one pass found.
type observation struct {
	secret         *unstructured.Unstructured
	configurations []configuration
	configMap      *unstructured.Unstructured
}

type configuration struct {
	resource schema.GroupVersionResource
	object   *unstructured.Unstructured
}

func (m *Managed) observe(ctx context.Context) (*observation, error) {
	c := &observation{}
	var err error
	if m.Serving != nil {
		for _, resource := range []schema.GroupVersionResource{mutating, validating} {
			o, err := m.get(ctx, resource, "", m.Serving.Configuration)
			if err != nil {
				return nil, err
			}
			c.configurations = append(c.configurations, configuration{resource, o})
		}
	}
	if m.Signing != nil {
		if c.configMap, err = m.get(ctx, configMaps, m.Signing.Namespace, m.Signing.ConfigMap); err != nil {
			return nil, err
		}
	}
	// Last, so that what it says is not older than the rest.
	c.secret, err = m.get(ctx, secrets, m.Namespace, m.Secret)
	return c, err
}

func (m *Managed) get(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	o, err := m.Client.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("cannot find %s %q: create it (an empty Secret or ConfigMap will do), as installing stepd does: %w", resource.Resource, name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s %q: %w", resource.Resource, name, err)
	}
	return o, nil
}

// trusts tells whether every webhook of the configurations has an authority in
// its caBundle.
func (c *observation) trusts(authority *x509.Certificate) bool {
	any := false
	for _, o := range c.configurations {
		for _, client := range clientConfigs(o.object) {
			any = true
			if !slices.ContainsFunc(bundleOf(client), authority.Equal) {
				return false
			}
		}
	}
	return any
}

func (c *observation) published(k signingKey) bool {
	text, _, _ := unstructured.NestedString(c.configMap.Object, "data", k.file())
	return text == k.Public
}

// clientConfigs are those of a configuration's webhooks, to read or to change.
func clientConfigs(o *unstructured.Unstructured) []map[string]any {
	webhooks, _ := o.Object["webhooks"].([]any)
	var out []map[string]any
	for _, w := range webhooks {
		webhook, _ := w.(map[string]any)
		if client, ok := webhook["clientConfig"].(map[string]any); ok {
			out = append(out, client)
		}
	}
	return out
}

func bundleOf(client map[string]any) []*x509.Certificate {
	text, _ := client["caBundle"].(string)
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

func setCABundle(o *unstructured.Unstructured, bundle []byte) (changed bool) {
	text := base64.StdEncoding.EncodeToString(bundle)
	for _, client := range clientConfigs(o) {
		if client["caBundle"] != text {
			client["caBundle"] = text
			changed = true
		}
	}
	return changed
}

// setPublicKeys makes the ConfigMap hold the public keys and nothing else: who
// reads it trusts every key in it.
func setPublicKeys(o *unstructured.Unstructured, keys []signingKey) (changed bool) {
	want := map[string]any{}
	for _, k := range keys {
		want[k.file()] = k.Public
	}
	have, _, _ := unstructured.NestedStringMap(o.Object, "data")
	binary, _ := o.Object["binaryData"].(map[string]any)
	if len(have) == len(want) && len(binary) == 0 {
		same := true
		for name, text := range want {
			same = same && have[name] == text
		}
		if same {
			return false
		}
	}
	o.Object["data"] = want
	delete(o.Object, "binaryData")
	return true
}

func secretData(o *unstructured.Unstructured) (map[string][]byte, error) {
	encoded, _, err := unstructured.NestedStringMap(o.Object, "data")
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte, len(encoded))
	for k, v := range encoded {
		if out[k], err = base64.StdEncoding.DecodeString(v); err != nil {
			return nil, fmt.Errorf("its %s is not base64", k)
		}
	}
	return out, nil
}

// setSecretData changes the keys that are ours, and leaves others alone.
func setSecretData(o *unstructured.Unstructured, have, want map[string][]byte) (changed bool) {
	ours := []string{dataAuthorities, dataAuthorityKeys, dataCertificate, dataKey, dataSigningKeys}
	if !slices.ContainsFunc(ours, func(k string) bool { return string(have[k]) != string(want[k]) }) {
		return false
	}
	data := map[string]any{}
	for k, v := range have {
		data[k] = base64.StdEncoding.EncodeToString(v)
	}
	for _, k := range ours {
		delete(data, k)
	}
	for k, v := range want {
		data[k] = base64.StdEncoding.EncodeToString(v)
	}
	o.Object["data"] = data
	return true
}
