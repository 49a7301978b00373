"""Compile csrc/ for Windows and macOS on any machine, and link the C library.

Nothing is run: this finds what does not compile or link there. It needs the packages ziglang, pybind11,
nlohmann_json and llama-cpp-python, and takes their headers and Python's from the environment that runs it:

    python tools/cross_compile.py [TARGET ...]
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
PACKAGES = Path(sysconfig.get_path("platlib"))
GGML_CONFIG = PACKAGES / "lib/cmake/ggml/ggml-config.cmake"
PROJECT = SOURCE / "pyproject.toml"
C_TEST = SOURCE / "tests/cpp/c_api_test.c"
LIBRARY = ("base", "gguf", "model", "capture", "formats", "capi")
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-command-line-argument")  # Zig itself adds unused ones
CXX = ("c++", "-std=c++17", "-fvisibility=hidden", *STRICT, "-Wpedantic", "-Wshadow", "-Wconversion")

# What Python's headers need to know of a system. pyconfig.h says it; their other files are the same everywhere.
_POINTERS = ("SIZEOF_VOID_P=8", "SIZEOF_SIZE_T=8", "SIZEOF_LONG_LONG=8", "SIZEOF_INT=4", "SIZEOF_PID_T=4")
_WINDOWS = ("MS_WINDOWS", "MS_WIN64", "NT_THREADS", "HAVE_DECLSPEC_DLL", "SIZEOF_LONG=4", "SIZEOF_WCHAR_T=2")
_MACOS = ("HAVE_PTHREAD_H", "HAVE_SSIZE_T", "SIZEOF_PTHREAD_T=8", "SIZEOF_LONG=8", "SIZEOF_WCHAR_T=4")
_SHARED = ("Py_ENABLE_SHARED", "HAVE_STDDEF_H", "HAVE_SYS_STAT_H", "HAVE_WCHAR_H", "HAVE_LONG_LONG")
PYTHON = {
    "x86_64-windows-gnu": (*_SHARED, *_POINTERS, *_WINDOWS),  # Zig has no headers of Microsoft's compiler
    "x86_64-macos": (*_SHARED, *_POINTERS, *_MACOS),
    "aarch64-macos": (*_SHARED, *_POINTERS, *_MACOS),
}


def zig(*arguments: str | Path) -> str:
    """Run one of Zig's tools. Returns its errors, or nothing if it succeeds."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr + done.stdout or f"status {done.returncode}\n"


def headers(package: str) -> Path:
    """Return where a Python package keeps its C++ headers."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed; pip install it")
    return Path(spec.origin).parent / "include"


def definition(name: str, path: Path, pattern: str) -> str:
    """Return the option that defines a name as the text that a pattern finds in a file."""
    found = re.search(pattern, path.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{path}: has nothing for {name}")
    return f'-D{name}="{found[1]}"'


def options(path: Path, target: str, python: Path) -> list[str | Path]:
    """Return how CMake compiles a file: the tool and its options. `python`: Python's headers."""
    if path == C_TEST:
        return ["cc", "-std=c99", *STRICT, "-I", SOURCE / "csrc/include"]
    system = [PACKAGES / "include", headers("pybind11"), headers("nlohmann_json"), python]
    return [
        *CXX,
        *(f"-D{name}" for name in PYTHON[target] if path.parent.name == "bindings"),
        *(["-DCOE_NATIVE_BUILD"] if path.parent.name == "capi" else []),
        definition("COE_GGML_VERSION", GGML_CONFIG, r'set\(GGML_VERSION "(.+)"\)'),
        definition(
            "COE_LLAMA_CPP_PYTHON_REQUIREMENT", SOURCE / "pyproject.toml", r'"(llama-cpp-python==[0-9a-z.]+)"'
        ),
        *("-I", SOURCE / "csrc", "-I", SOURCE / "csrc/include"),
        *(option for place in system for option in ("-isystem", place)),
    ]


def link(target: str, objects: dict[Path, Path], folder: Path) -> str:
    """Link the C library, and its test with it; the functions of ggml are not looked up. Returns errors."""
    unresolved: list[str | Path] = ["-Wl,-undefined,dynamic_lookup"]
    library = folder / ("coe_native.dll" if "windows" in target else "libcoe_native.dylib")
    if "windows" in target:
        text = "".join(path.read_text(encoding="utf-8") for path in (PACKAGES / "include").glob("gg*.h"))
        exports = ["LIBRARY ggml-base.dll", "EXPORTS", *sorted(set(re.findall(r"\b(gg(?:ml|uf)_\w+) *\(", text)))]
        (folder / "ggml.def").write_text("\n".join(exports), encoding="utf-8")
        unresolved = [folder / "ggml.lib"]
        wrong = zig("dlltool", "-m", "i386:x86-64", "-d", folder / "ggml.def", "-l", unresolved[0])
        if wrong:
            return wrong
    parts = [compiled for path, compiled in objects.items() if path.parent.name in LIBRARY]
    return zig("c++", "-target", target, "-shared", *parts, *unresolved, "-o", library) or zig(
        "cc", "-target", target, objects[C_TEST], f"-L{folder}", "-lcoe_native", "-o", folder / "c_api_test"
    )


def check(target: str) -> bool:
    """Compile all files for a target, link the C library, and print what failed. Returns whether nothing did."""
    paths = [*sorted((SOURCE / "csrc").rglob("*.cpp")), C_TEST]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor() as pool:
        folder = Path(temporary)
        python = folder / "python"
        shutil.copytree(sysconfig.get_path("include"), python)
        (python / "pyconfig.h").write_text("", encoding="utf-8")  # this machine's
        objects = {path: folder / f"{number}.o" for number, path in enumerate(paths)}

        def compiled(path: Path) -> str:
            tool, *rest = options(path, target, python)
            return zig(tool, "-target", target, "-fno-sanitize=all", *rest, "-c", path, "-o", objects[path])

        wrong = zip(paths, pool.map(compiled, paths), strict=True)
        failed = {str(path.relative_to(SOURCE)): text for path, text in wrong if text}
        unlinked = "" if failed else link(target, objects, folder)
    library = "not tried" if failed else "failed" if unlinked else "works"
    print(f"{target}: {len(paths) - len(failed)} of {len(paths)} files compile; linking the C library: {library}")
    for name, text in {**failed, "the C library": unlinked}.items():
        print(f"--- {name}\n{text}" if text else "", end="", flush=True)
    return not (failed or unlinked)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PYTHON)
    unknown = set(chosen) - set(PYTHON)
    if unknown:
        sys.exit(f"unknown targets: {', '.join(sorted(unknown))}; there are {', '.join(PYTHON)}")
    results = [check(target) for target in chosen]
    sys.exit(not all(results))
