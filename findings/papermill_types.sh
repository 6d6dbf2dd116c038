#!/usr/bin/env bash
# papermill 2.7.0, command line: -p guesses a type from the characters of a value and does not look
# at the type that the notebook declares for the parameter.
#
# Expected guess: `user: str = ""` in the cell tagged "parameters" (whose types papermill itself
# reads, for --help-notebook) makes `-p user 007` the text "007".
# Seen: the number 7 is injected; likewise 1_000 becomes 1000, 1e3 becomes 1000.0 and True a bool.
# Ids of users lose their zeros without a word. -r (raw) keeps the text, and -y takes quoted YAML.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check papermill==2.7.0 nbformat==5.11.1
env/bin/python - <<'PY'
import nbformat

cell = nbformat.v4.new_code_cell('user: str = ""  # whose query', metadata={"tags": ["parameters"]})
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), "in.ipynb")
PY
injected() { # option, value: the line that papermill adds
  env/bin/papermill --prepare-only "$1" user "$2" in.ipynb out.ipynb 2>/dev/null
  env/bin/python -c 'import nbformat; print(nbformat.read("out.ipynb", 4).cells[1].source.splitlines()[-1])'
}
env/bin/papermill --version
env/bin/papermill --help-notebook in.ipynb | grep "user: str"
status=0
while read -r option value expected; do
  found="$(injected "$option" "$value")"
  printf '%s user %-6s -> %s\n' "$option" "$value" "$found"
  [ "$found" = "user = $expected" ] || { echo "changed: wanted user = $expected"; status=1; }
done <<'CASES'
-p 007 7
-p 1_000 1000
-p 1e3 1000.0
-p True True
-r 007 "007"
CASES
exit $status
