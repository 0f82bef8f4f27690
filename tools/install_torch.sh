#!/usr/bin/env bash
# Installs torch for make and docker: a build for the CPU where there is no GPU, as the one for CUDA is several GB larger.
#
#   install_torch.sh PYTHON PINS [TORCH]     in the folder of constraints.txt
#
# PINS is written: constraints.txt with the torch that was installed, for what is installed next.
# TORCH is for pip and takes the place of all choice: a version, or one with the index that has it.
# ACCELERATOR=cpu or ACCELERATOR=cuda, in the environment, decides in place of nvidia-smi.
set -euo pipefail

CPU_INDEX=https://download.pytorch.org/whl/cpu # PyTorch's own

python=$1 pins=$2 torch=${3:-}
pinned=$(grep '^torch==' constraints.txt)
grep -v '^torch==' constraints.txt > "$pins"

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }
say() { echo "torch: $*"; }

accelerator() {
    if [[ $(nvidia-smi -L 2> /dev/null) == *"GPU "* ]]; then echo cuda; else echo cpu; fi
}

index_has_cpu_build() { # by the requirements of its package, which most indexes, PyPI too, have apart from the package
    local report
    report=$(pip install --quiet --dry-run --no-deps --ignore-installed --report - "$pinned" 2> /dev/null) || return 1
    "$python" -c '
import json, re, sys
needs = json.loads(sys.argv[1])["install"][0]["metadata"].get("requires_dist", [])
sys.exit(any(re.match("nvidia|cuda|triton", need) for need in needs))' "$report"
}

if [[ -n $torch ]]; then
    say "$torch, as asked"
    read -ra words <<< "$torch"
elif [[ ${ACCELERATOR:-$(accelerator)} == cuda ]]; then
    say "$pinned for CUDA, from pip's index"
    words=("$pinned")
elif index_has_cpu_build; then
    say "$pinned for the CPU, from pip's index"
    words=("$pinned")
else
    say "$pinned for the CPU, from $CPU_INDEX (no GPU here; ACCELERATOR=cuda takes the build for CUDA)"
    # Nothing but torch from there: what it needs has its versions in constraints.txt and is on pip's index.
    pip install --no-deps --retries 2 --index-url "$CPU_INDEX" "$pinned" ||
        say "$CPU_INDEX cannot be reached: from pip's index then, a download of several GB"
    words=("$pinned")
fi
pip install -c "$pins" "${words[@]}"
"$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> "$pins"
say "$(tail -n 1 "$pins") is installed"
