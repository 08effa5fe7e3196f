#!/usr/bin/env bash
# make bench: runs every benchmark below bench/, or those named as arguments
# (bash e2e/bench.sh verify). Each prints ratios against a baseline of its run.
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -eq 0 ]; then set -- $(ls bench); fi
for name in "$@"; do
	echo "== bench/$name"
	go run "./bench/$name"
done
