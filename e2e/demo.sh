#!/usr/bin/env bash
# make demo: needs Go and git, nothing else, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")"
exec go run ./demo
