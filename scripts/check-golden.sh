#!/usr/bin/env bash
# Compares `stepd run` with what real Kargo answered, case by case. The cases
# live beside the checkout; without them this is skipped, but never under
# CI=true. A disagreement fails, whatever the case; those that are on purpose
# are in the comparer's own list of quirks and in docs/kargo-compatibility.md.
set -euo pipefail
cd "$(dirname "$0")/.."
golden=${STEPD_SHARED:-../shared}/kargo/golden
if [ ! -f "$golden/compare.py" ]; then
	[ "${CI:-}" != true ] || { echo "no golden cases in $golden" >&2; exit 1; }
	echo "skipped: no golden cases in $golden"
	exit 0
fi
python3 "$golden/compare.py" --skip-quirks -- "$PWD/bin/stepd" run --live -o json -f CASE PROMOTION --keep --workdir DIR
