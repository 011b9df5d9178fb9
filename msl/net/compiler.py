"""From a C file to a BPF program in the kernel: finding bcc and kernel headers, compiling, loading.

The only module that imports bcc, and only when something is compiled: libbcc brings LLVM along, some 60 MB.
What is attached outlives the process, as bcc closes only its own descriptors at exit; the kernel's filters
hold the programs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import platform
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from msl.errors import NetworkError

if TYPE_CHECKING:
    from bcc import BPF

log = logging.getLogger(__name__)

_INSTALL_BCC = "apt-get install -y python3-bpfcc"

_DEBIAN_BCC = Path("/usr/lib/python3/dist-packages/bcc")
_MODULES = Path("/lib/modules")
_ARCH = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv", "ppc64le": "powerpc", "s390x": "s390"}
_DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}

_INCLUDE = re.compile(r'#include "([^"]+)"')
_MEMORY_FILE = "/virtual/main.c"  # bcc's name for the text that it compiles
_DIAGNOSTIC = re.compile(
    r"^(?P<place>(?P<file>[^:\n]+):\d+):\d+: (?:fatal )?(?P<kind>error|warning): (?P<text>.+)$", re.M
)

# A compilation changes the working folder, the environment and descriptor 2 of the whole process.
_exclusive = threading.RLock()


@dataclass(frozen=True)
class Headers:
    """Kernel headers as Debian lays them out: what is written by hand in one folder, what is made in another."""

    source: Path
    """Folder with include/linux; bcc compiles with this as its working folder."""
    build: Path
    """Folder with include/generated; the same as `source` where the distribution has but one."""

    def flags(self) -> list[str]:
        """What bcc must be told beyond BCC_KERNEL_SOURCE, so that no merged copy of the folders is needed."""
        if self.source == self.build:
            return []
        arch = self.build / "arch" / _kernel_arch()
        made = (arch / "include/generated", self.build / "include", arch / "include/generated/uapi")
        return [f"-I{folder}" for folder in (*made, self.build / "include/generated/uapi")]


def bcc_folder(debian: Path = _DEBIAN_BCC) -> Path:
    """Folder of the BPF Compiler Collection's Python package; nothing is imported.

    Debian's is pure Python, and serves every interpreter. A package on the import path is taken where it is the
    right one: PyPI has another under the name bcc, which lacks the binding to libbcc.

    Raises:
        NetworkError: there is none.
    """
    spec = importlib.util.find_spec("bcc")
    importable = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    for folder in (debian, *importable):
        if (folder / "libbcc.py").is_file():
            return folder
    foreign = f" ({importable[0]} is an unrelated package of the same name)" if importable else ""
    raise NetworkError(f"the BPF compiler bcc is not installed{foreign}; run: {_INSTALL_BCC}")


def load_bcc(debian: Path = _DEBIAN_BCC) -> ModuleType:
    """The module `bcc`, from its own folder: the rest of Debian's dist-packages stays off the import path.

    Raises:
        NetworkError: bcc is not installed, or its library does not load.
    """
    with _exclusive:
        loaded = sys.modules.get("bcc")
        if loaded is not None and hasattr(loaded, "BPF") and hasattr(loaded, "libbcc"):
            return loaded
        folder = bcc_folder(debian)
        spec = importlib.util.spec_from_file_location(
            "bcc", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bcc"] = module
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer Pythons object to bcc's escape sequences
                spec.loader.exec_module(module)
        except (ImportError, OSError) as error:
            for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
                del sys.modules[name]
            raise NetworkError(f"bcc in {folder} does not load: {error}; run: {_INSTALL_BCC}") from error
        return module


def kernel_headers(modules: Path = _MODULES, release: str | None = None) -> Headers:
    """Headers of the running kernel or, where it has none, the newest that are installed.

    Those of another version serve: what the programs take from them is the kernel's interface to user space.

    Raises:
        NetworkError: there are none for this machine's architecture.
    """
    release = release or platform.release()
    others = sorted(modules.glob("*"), key=lambda folder: _version(folder.name), reverse=True)
    for folder in (modules / release, *others):
        build, source = folder / "build", folder / "source"
        if not (build / "include/generated/autoconf.h").is_file():
            continue
        if not (build / "arch" / _kernel_arch() / "include/generated").is_dir():
            continue
        for candidate in (build, source):
            if (candidate / "include/linux/kconfig.h").is_file():
                return Headers(candidate.resolve(), build.resolve())
    raise NetworkError(f"no kernel headers in {modules}; run: {_install_headers(release)}")


def _install_headers(release: str) -> str:
    """The command that installs headers; a kernel that is no distribution's own has no package of its release."""
    packaged = re.fullmatch(r"\d+\.\d+\.\d+-\d[\w.]*-[\w-]+", release)
    return (
        f"apt-get install -y linux-headers-{release if packaged else _DEBIAN_ARCH.get(platform.machine(), 'generic')}"
    )


def compile_source(path: Path, defines: Mapping[str, int]) -> BPF:
    """Compile the C file `path` with these macros; `#include "..."` is relative to its folder.

    Warnings about the file or its neighbours are logged, those about kernel headers are not. What other threads
    write to standard error meanwhile (about 0.3 s) ends up in the debug log.

    Raises:
        NetworkError: bcc or headers are missing, or the file does not compile; it names file and line.
    """
    bcc, headers, path = load_bcc(), kernel_headers(), path.resolve()
    try:
        text = _one_text(path, set()).encode()
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}") from error
    # -iquote comes before all -I, among which bcc puts the working folder of this process first.
    flags = ["-Wall", f"-iquote{path.parent}", *headers.flags()]
    flags += [f"-D{name}={value}" for name, value in defines.items()]
    failure = None
    with _exclusive, _environment("BCC_KERNEL_SOURCE", str(headers.source)), _captured_stderr() as captured:
        try:
            program = bcc.BPF(text=text, cflags=flags)
        except Exception as error:  # bcc raises nothing narrower, and its own words tell nothing
            failure = error
    output = captured.getvalue().replace(_MEMORY_FILE, str(path))
    found = list(_DIAGNOSTIC.finditer(output))
    own = [match for match in found if Path(match["file"]).is_relative_to(path.parent)]
    for match in own:
        if match["kind"] == "warning":
            log.warning("%s: %s", match["place"], match["text"])
    if output:
        log.debug("compiler output of %s:\n%s", path, output)
    if failure is not None:
        # A wrong macro shows as an error in a header: the file's own errors come first, if there are any.
        errors = [match for match in (*own, *found) if match["kind"] == "error"]
        reason = f"{errors[0]['place']}: {errors[0]['text']}" if errors else f"{path}: {failure}"
        raise NetworkError(f"{reason} (BPF compiler; headers {headers.build})") from failure
    return program


def _one_text(path: Path, seen: set[Path]) -> str:
    """A C file with its own headers put in: bcc rewrites accesses to maps in the main file's text only."""
    seen.add(path)
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        included = _INCLUDE.fullmatch(line)
        if included is None:
            lines.append("" if line == "#pragma once" else line)
        elif (header := (path.parent / included[1]).resolve()) not in seen:
            lines += [_one_text(header, seen), f'#line {number + 1} "{path}"']
        else:
            lines.append("")
    return "\n".join(lines) + "\n"


def load_program(program: BPF, function: str) -> int:
    """Load a function as a tc classifier and return its descriptor, which belongs to `program`.

    Raises:
        NetworkError: the kernel's verifier refuses it; its last words are in the message, all in the debug log.
    """
    failure = None
    with _exclusive, _captured_stderr() as captured:
        try:
            descriptor: int = program.load_func(function.encode(), program.SCHED_CLS).fd
        except Exception as error:
            failure = error
    verdict = captured.getvalue()
    if verdict:
        log.debug("verifier on %s:\n%s", function, verdict)
    if failure is None:
        return descriptor
    lines = [line for line in verdict.splitlines() if line and not line.startswith(("processed ", "bpf: ", "HINT:"))]
    raise NetworkError(f"BPF program {function}: {lines[-1] if lines else failure}") from failure


def _kernel_arch() -> str:
    return _ARCH.get(platform.machine(), platform.machine())


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _captured_stderr() -> Iterator[StringIO]:
    """What is written to descriptor 2, where libbcc writes from C; it is in the buffer after the context."""
    captured = StringIO()
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.write(file.read().decode(errors="replace"))
