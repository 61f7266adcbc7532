#!/usr/bin/env bash
# Every Eval Ever's converter refuses lm-eval results of a model without OWNER/, and its own validator accepts such a model.
#
# Version    every-eval-ever 0.3.0, which needs Python 3.12 or newer (PYTHON=python3.12 names another one)
# Behaviour  `convert lm_eval` takes the developer from the name in `pretrained`. A name without a slash, such as gpt2 or
#            a local folder, ends in a traceback; no option names the developer. The same record with such an id and a
#            developer is valid.
# Why care   lm-eval writes such names for every local model. Give its results another `pretrained` before converting,
#            or write the record yourself.
# Output     owner/tiny: converted
#            tiny: refused, ValueError: model_info.developer is required
#            the record of owner/tiny with id tiny and developer owner: valid
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check every-eval-ever==0.3.0
cat > "$folder/show.py" <<'PYTHON'
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

folder = Path(sys.argv[1])
command = [str(folder / "venv/bin/every_eval_ever")]


def convert(name):
    """Convert the results of a model of this name; returns the process and the record that it wrote, if any."""
    config = {"model": "hf", "model_args": {"pretrained": name}, "batch_size": 1, "device": "cpu", "limit": None}
    task = {"task": "toy", "dataset_path": "toy/toy", "output_type": "generate_until"}
    task["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    results = {
        "results": {"toy": {"alias": "toy", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "group_subtasks": {"toy": []},
        "configs": {"toy": task},
        "versions": {"toy": 1},
        "n-shot": {"toy": 0},
        "higher_is_better": {"toy": {"acc": True}},
        "n-samples": {"toy": {"original": 10, "effective": 10}},
        "config": config,
        "date": 1764000000.0,
        "lm_eval_version": "0.4.13",
        "model_name": name,
        "model_source": "hf",
    }
    place = folder / name.replace("/", "_")
    place.mkdir()
    log = place / "results_2026-12-01T00-00-00.json"
    log.write_text(json.dumps(results))
    options = ["convert", "lm_eval", "--log_path", str(log), "--output_dir", str(place / "data")]
    done = subprocess.run(command + options, capture_output=True, text=True)
    return done, next(iter(sorted((place / "data").rglob("*.json"))), None)


print("every-eval-ever", version("every-eval-ever"))
done, record = convert("owner/tiny")
converted = done.returncode == 0 and record is not None
print("owner/tiny:", "converted" if converted else done.stderr[-300:])
done, none = convert("tiny")
last = (done.stderr.strip().splitlines() or ["no message"])[-1]
refused = done.returncode != 0 and none is None and last == "ValueError: model_info.developer is required"
print("tiny:", f"refused, {last}" if done.returncode else "converted")
valid = False
if record is not None:
    data = json.loads(record.read_text())
    data["model_info"] |= {"name": "tiny", "id": "tiny", "developer": "owner"}
    record.write_text(json.dumps(data))
    place = folder / "owner_tiny"  # the validator takes paths below data/ alone
    options = ["validate", str(record.relative_to(place))]
    valid = subprocess.run(command + options, cwd=place, capture_output=True).returncode == 0
print("the record of owner/tiny with id tiny and developer owner:", "valid" if valid else "not valid")
sys.exit(0 if converted and refused and valid else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
