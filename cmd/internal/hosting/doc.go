// Package hosting is what every verb that runs steps gives to them: stepd's own
// steps for another engine, those of plugins and step servers, clusters, and
// what an operator's Kargo documents and environment say of secrets,
// credentials and git's user; with the flags that set it. The registry of a
// local run, which tells live from dry, belongs in cmd/stepd.
package hosting
