#!/usr/bin/env bash
# The same seed makes Optuna's TPESampler ask other questions in 5.0.0 than in 4.9.0.
#
# Who is hurt: a search over kernel configs that is resumed, or shared by several machines, through a
# stored study. After the random start, which is the same, an upgrade of Optuna alone turns
# it into another search: machines with the two versions ask for different configs, and a result
# cannot be reproduced from its seed.
#
# Not a fault: no release promises equal samples. Pin Optuna for one study.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/ask.py" <<'PYTHON'
import sys
import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
asked = []
for _ in range(30):
    trial = study.ask()
    bq = trial.suggest_categorical("bq", [16, 32, 64, 128, 256])
    bkv = trial.suggest_categorical("bkv", [128, 256, 512, 1024, 2048])
    asked.append((bq, bkv))
    study.tell(trial, abs(bq - 64) / 64 + abs(bkv - 512) / 512)
print(*(f"{bq}x{bkv}" for bq, bkv in asked))
PYTHON
for version in 4.9.0 5.0.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "optuna==$version" numpy==2.4.6
  "$folder/$version/bin/python" "$folder/ask.py" > "$folder/$version.txt"
  echo "optuna $version: $(cut -d' ' -f1-16 "$folder/$version.txt") ..."
done
python3 - "$folder/4.9.0.txt" "$folder/5.0.0.txt" <<'PYTHON'
import sys

old, new = (open(name).read().split() for name in sys.argv[1:])
same = next((i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1]), len(old))
print(f"the first {same} of {len(old)} questions are the same")
assert old[:10] == new[:10], "the random start differs, too"
assert same < len(old), "both versions ask the same now"
PYTHON
echo "as recorded"
# Output seen (Python 3.11, numpy 2.4.6):
#   optuna 4.9.0: 32x1024 128x2048 16x512 32x1024 64x128 64x256 64x1024 64x1024 128x2048 128x1024
#                 256x256 16x512 16x512 16x256 256x512 64x256 ...
#   optuna 5.0.0: the same twelve, then 64x256 64x256 32x256 16x256 ...
#   the first 12 of 30 questions are the same
