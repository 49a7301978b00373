#!/usr/bin/env bash
# Builds everything for an NVIDIA GPU, runs the tests marked `gpu`, and measures. Meant to take less than 12 minutes
# with 16 CPU cores and a card like the H100, build included; each phase has a limit and prints what it took.
#
#     benchmarks/gpu.sh LLAMA_CPP_PYTHON [DIRECTORY]
#
# LLAMA_CPP_PYTHON: the source archive of the release that pyproject.toml names, or its unpacked folder:
#     pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==VERSION
# DIRECTORY: where everything is built and kept for the next run, which then goes on with what is missing; build/gpu
# by default. It needs 35 GB.
#
# Needs CUDA's compiler and libraries, a C++ compiler, CMake and Python 3.10 or newer with its headers. PYTHON names
# another Python than python3; packages that it has are used, others come from the package index. Logs, the table
# (measure.log) and gpu.json are left in $OUT, or in DIRECTORY/results.
#
# COE_GPU_LAYERS (30): layers of the random model; 12 is enough where time or memory is short.
# COE_GPU_RUNS (5): runs of which medians are taken.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
fi
root=$(realpath "$(dirname "$0")/..")
archive=$(realpath "$1")
dir=$(realpath -m "${2:-$root/build/gpu}")
out=$(realpath -m "${OUT:-$dir/results}")
mkdir -p "$dir" "$out"
cd "$root"
export PYTHONUNBUFFERED=1

began=$SECONDS
say() { printf '%s %4d s  %s\n' "$(date +%T)" $((SECONDS - began)) "$*"; }

# phase NAME SECONDS COMMAND…: runs a command for so long at most; what it prints goes to NAME.log.
phase() {
  local name=$1 limit=$2 status=0 from=$SECONDS
  shift 2
  say "$name: begins"
  timeout -k 10 "$limit" "$@" >>"$out/$name.log" 2>&1 || status=$?
  if [ "$status" = 0 ]; then
    say "$name: done in $((SECONDS - from)) s"
  else
    if [ "$status" = 124 ]; then say "$name: took longer than its limit"; fi
    say "$name: FAILED with status $status after $((SECONDS - from)) s; the end of its log:"
    tail -n 25 "$out/$name.log"
  fi
  return "$status"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
"$nvcc" --version | tail -n 2

# An environment that sees the packages of the Python that makes it, also where that one is itself an environment.
python="$dir/venv/bin/python"
if [ ! -x "$python" ]; then
  parent=$(command -v "${PYTHON:-python3}")
  "$parent" -m venv --system-site-packages "$dir/venv" ||
    "$parent" -m venv --system-site-packages --without-pip --clear "$dir/venv"
  "$parent" -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
    >"$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/parent.pth"
fi
export PATH="$dir/venv/bin:$PATH"

# llama.cpp with CUDA for this machine's card alone, as llama-cpp-python installs it. The build is kept.
version=$(sed -n 's/.*"llama-cpp-python==\([^"]*\)".*/\1/p' pyproject.toml | head -n 1)
source="$dir/llama-cpp-python"
if [ -d "$archive" ]; then source=$archive; fi
if [ ! -d "$source" ]; then
  mkdir "$source.tmp"
  tar -xzf "$archive" --strip-components=1 -C "$source.tmp"
  mv "$source.tmp" "$source"
fi
if ! grep -q "__version__ = \"$version\"" "$source/llama_cpp/__init__.py"; then
  say "$archive is not llama-cpp-python $version"
  exit 2
fi
phase tools 120 "$python" -m pip install scikit-build-core pybind11 nlohmann_json cmake ninja
if [ ! -e "$dir/llama-cpp-python.done" ]; then
  cuda="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native -DCMAKE_CUDA_COMPILER=$nvcc"
  CMAKE_ARGS="${CMAKE_ARGS:-} $cuda -DLLAVA_BUILD=off" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    phase llama-cpp-python 600 "$python" -m pip install -v --no-build-isolation --no-cache-dir \
    --config-settings=build-dir="$dir/build-llama" "$source"
  touch "$dir/llama-cpp-python.done"
fi

# This project, built against it.
CMAKE_ARGS="-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
  phase coe-native 180 "$python" -m pip install -v --no-build-isolation --config-settings=build-dir="$dir/build-coe" \
  -e ".[serve]" pytest pytest-timeout pytest-xdist
"$python" -c "
from coe_native._native import core
assert core.free_gpu_memory(), 'llama.cpp sees no GPU'"

# Some compilers link parts of the C++ library into each shared library. Two copies of it in a process crash in each
# other's hands, so the shared one is loaded first there.
libraries=$("$python" -c "import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parent / 'lib')")
if nm -D --defined-only "$libraries/libggml-cuda.so" | grep ' _ZNSo9_M_insertIlEERSoT_' >/dev/null; then
  preloaded=$(ldconfig -p | awk '/libstdc\+\+\.so\.6 .*64/ && !found { print $NF; found = 1 }')
  say "libggml-cuda.so has a copy of the C++ library: $preloaded is loaded first"
  export LD_PRELOAD=$preloaded
fi

# While the tests run: llama-bench, from the same sources and libraries, and the random model.
make_model() {
  "$python" -m benchmarks.gpu "$dir" --layers "${COE_GPU_LAYERS:-30}" --only model
}
make_llama_bench() {
  local vendor="$source/vendor/llama.cpp" libraries="$dir/build-llama/bin"
  mkdir -p "$dir/bin"
  "${CXX:-g++}" -O2 -DNDEBUG -std=c++17 -I"$vendor/common" -I"$vendor/include" -I"$vendor/ggml/include" \
    "$vendor"/tools/llama-bench/*.cpp -o "$dir/bin/llama-bench" \
    -L"$libraries" -lllama-common -lllama -lggml -lggml-base -Wl,-rpath,"$libraries" -Wl,--allow-shlib-undefined
}
export -f make_model make_llama_bench
export python dir source
phase model 300 bash -c make_model &
making=$!
phase llama-bench 120 bash -c make_llama_bench || rm -f "$dir/bin/llama-bench"

# Plugins of other packages stay out: their warnings would be errors here. Threads that wait give way to others.
failed=()
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 COE_TEST_GPU=1 OMP_WAIT_POLICY=passive \
  phase tests 240 "$python" -m pytest -p pytest_timeout -p xdist.plugin -n $((($(nproc) + 1) / 2)) -m gpu --durations=5 \
  tests/models/test_gpu.py || failed+=(tests)
grep -E '^(FAILED|ERROR|E  |.*(passed|failed))' "$out/tests.log" | tail -n 30 || true
wait "$making"

options=()
if [ -x "$dir/bin/llama-bench" ]; then options=(--llama-cpp "$dir/bin"); fi
if phase measure 420 "$python" -m benchmarks.gpu "$dir" "${options[@]}" --layers "${COE_GPU_LAYERS:-30}" \
  --runs "${COE_GPU_RUNS:-5}" --json "$out/gpu.json"; then
  cat "$out/measure.log"
else
  failed+=(measurements)
fi
say "everything took $((SECONDS - began)) s"
if [ "${#failed[@]}" -gt 0 ]; then
  say "FAILED: ${failed[*]}"
  exit 1
fi
