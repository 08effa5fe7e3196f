// Package kargo is the root of what runs stepd's steps on an unmodified Kargo.
// There is no code in it, only the rooms below it:
//
//   - wire: what the webhook writes into a Promotion and the sidecar reads back:
//     encoded configs, tokens, requests and answers. No network, no cluster.
//   - admission: the webhook. It rewrites Promotions, and checks Stages and tasks.
//   - cluster: the Kubernetes client, which reads Kargo's resources as
//     runner/kargoapi has them.
//   - sidecar: the server beside Kargo's controller that runs the steps.
//
// They use runner and steps; nothing but cmd uses them. Kargo's resource types
// and its expression language, which stepd also needs where there is no cluster,
// are below runner.
package kargo
