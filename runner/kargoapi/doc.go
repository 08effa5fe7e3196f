// Package kargoapi holds the Kubernetes API types that Kargo v1.11.2 defines
// (group kargo.akuity.io/v1alpha1) and the two core kinds it reads, as plain
// Go structs with the same JSON.
//
// Decoding an object and encoding it again loses nothing that Kargo's
// CustomResourceDefinitions know; a test walks their schemas. Parts that
// promotions never look into (webhook receivers, discovered artifacts) are
// kept as raw JSON. The types that steps see (freight) are those of package
// steps.
//
// Reading files belongs in package load, admission rules and inflation in
// package runner.
package kargoapi

// Group and version of Kargo's own kinds.
const (
	Group        = "kargo.akuity.io"
	GroupVersion = Group + "/v1alpha1"
	CoreVersion  = "v1"
)

// Kinds this package has types for.
const (
	KindStage                = "Stage"
	KindPromotion            = "Promotion"
	KindPromotionTask        = "PromotionTask"
	KindClusterPromotionTask = "ClusterPromotionTask"
	KindWarehouse            = "Warehouse"
	KindFreight              = "Freight"
	KindProject              = "Project"
	KindProjectConfig        = "ProjectConfig"
	KindClusterConfig        = "ClusterConfig"
	KindSecret               = "Secret"
	KindConfigMap            = "ConfigMap"
)

// Labels and annotations that matter to a promotion.
const (
	// LabelCredentialType marks a Secret as repository credentials (git, helm,
	// image) or as readable by sharedSecret() (generic).
	LabelCredentialType = "kargo.akuity.io/cred-type"
	// LabelAlias mirrors a Freight's alias.
	LabelAlias = "kargo.akuity.io/alias"
	// AnnotationCreateActor names who created a Promotion.
	AnnotationCreateActor = "kargo.akuity.io/create-actor"
	// AnnotationRollback is "true" on a Promotion that is a rollback.
	AnnotationRollback = "kargo.akuity.io/rollback"
	// AnnotationAbort asks Kargo to stop a Promotion.
	AnnotationAbort = "kargo.akuity.io/abort"
	// ActorUnknown is the create-actor value that stands for nobody.
	ActorUnknown = "unknown actor"
)

// Kinds returns the kinds of Kargo's group that this package has types for.
func Kinds() []string {
	return []string{
		KindStage, KindPromotion, KindPromotionTask, KindClusterPromotionTask, KindWarehouse, KindFreight, KindProject,
		KindProjectConfig, KindClusterConfig,
	}
}

// New returns a pointer to a zero object of a kind, or nil for a kind or
// apiVersion this package has no type for.
func New(apiVersion, kind string) Object {
	switch apiVersion {
	case GroupVersion:
		switch kind {
		case KindStage:
			return &Stage{}
		case KindPromotion:
			return &Promotion{}
		case KindPromotionTask:
			return &PromotionTask{}
		case KindClusterPromotionTask:
			return &ClusterPromotionTask{}
		case KindWarehouse:
			return &Warehouse{}
		case KindFreight:
			return &Freight{}
		case KindProject:
			return &Project{}
		case KindProjectConfig:
			return &ProjectConfig{}
		case KindClusterConfig:
			return &ClusterConfig{}
		}
	case CoreVersion:
		switch kind {
		case KindSecret:
			return &Secret{}
		case KindConfigMap:
			return &ConfigMap{}
		}
	}
	return nil
}
