"""Finding bcc and kernel headers, and what becomes of a C file that does or does not compile."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from msl.errors import NetworkError
from msl.net import compiler, requirements

RELEASE = "6.18.44-test"
PROGRAM = """\
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "verdict.h"
int probe(struct __sk_buff *skb)
{
    return verdict(skb);
}
"""
VERDICT = "static __always_inline int verdict(struct __sk_buff *skb)\n{\n    %s\n}\n"


def can_compile() -> str:
    """Why nothing can be compiled here; "" if it can."""
    try:
        compiler.load_bcc()
        compiler.kernel_headers()
    except NetworkError as error:
        return str(error)
    return ""


compiles = pytest.mark.skipif(bool(can_compile()), reason=f"needs the BPF compiler: {can_compile()}")
capabilities = requirements.check_capabilities(Path("/proc/self/status").read_text())
loads = pytest.mark.skipif(
    not capabilities.ok, reason=f"loading a BPF program needs capabilities ({capabilities.found})"
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program whose header is beside it."""
    (tmp_path / "verdict.h").write_text(VERDICT % "return TC_ACT_OK;")
    path = tmp_path / "program.c"
    path.write_text(PROGRAM)
    return path


def package(folder: Path, *, binding: bool) -> Path:
    """A package of the name bcc; the right one has the binding to libbcc."""
    (folder / "bcc").mkdir(parents=True)
    (folder / "bcc" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if binding:
        (folder / "bcc" / "libbcc.py").touch()
    return folder / "bcc"


def install_headers(modules: Path, release: str, *, split: bool = False, arch: str | None = None) -> Path:
    """Headers as Debian has them, in two folders, or as others do, in one."""
    build = modules / release / "build"
    source = modules / release / "source" if split else build
    made = build / "arch" / (arch or compiler._kernel_arch()) / "include" / "generated"
    made.mkdir(parents=True)
    for path in (build / "include/generated/autoconf.h", source / "include/linux/kconfig.h"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return build


def test_an_unrelated_package_of_the_same_name_is_refused_unimported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = package(tmp_path, binding=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    with pytest.raises(NetworkError) as caught:
        compiler.load_bcc(debian=tmp_path / "absent")
    assert str(foreign) in str(caught.value)
    assert "unrelated" in str(caught.value)
    assert str(caught.value).endswith("; run: apt-get install -y python3-bpfcc")
    assert "bcc" not in sys.modules


def test_debians_package_comes_before_one_on_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = package(tmp_path / "debian", binding=True)
    package(tmp_path / "other", binding=True)
    monkeypatch.syspath_prepend(tmp_path / "other")
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    assert compiler.bcc_folder(debian) == debian


def test_the_right_package_on_the_import_path_is_taken_where_debian_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = package(tmp_path, binding=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    assert compiler.bcc_folder(tmp_path / "absent") == found


def test_a_library_that_does_not_load_is_told_in_one_line_and_leaves_no_half_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path, binding=True)
    (folder / "__init__.py").write_text("from . import libbcc\n")
    (folder / "libbcc.py").write_text("import ctypes\nctypes.CDLL('libabsent.so.0')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        NetworkError, match=r"does not load: libabsent\.so\.0.*; run: apt-get install -y python3-bpfcc$"
    ):
        compiler.load_bcc(debian=folder)
    assert not [name for name in sys.modules if name.split(".")[0] == "bcc"]


def test_nothing_is_imported_before_something_is_compiled() -> None:
    code = "import sys, msl.net.compiler, msl.net.requirements; sys.exit('bcc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(compiler.__file__).parents[2])


@compiles
def test_the_rest_of_debians_packages_stays_off_the_import_path() -> None:
    compiler.load_bcc()
    assert "/usr/lib/python3/dist-packages" not in sys.path


def test_the_running_kernels_headers_come_before_newer_ones(tmp_path: Path) -> None:
    install_headers(tmp_path, "6.20.0-1-amd64")
    own = install_headers(tmp_path, RELEASE)
    assert compiler.kernel_headers(tmp_path, RELEASE).build == own


def test_without_its_own_headers_the_newest_serve(tmp_path: Path) -> None:
    (tmp_path / RELEASE).mkdir()
    install_headers(tmp_path, "6.9.0-1-amd64")
    newest = install_headers(tmp_path, "6.10.0-1-amd64")
    assert compiler.kernel_headers(tmp_path, RELEASE).build == newest


def test_headers_of_another_architecture_are_passed_over(tmp_path: Path) -> None:
    install_headers(tmp_path, "6.10.0-1-other", arch="other")
    own = install_headers(tmp_path, "6.1.0-1-amd64")
    assert compiler.kernel_headers(tmp_path, RELEASE).build == own


def test_headers_whose_target_is_gone_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / RELEASE).mkdir()
    (tmp_path / RELEASE / "build").symlink_to(tmp_path / "gone")
    own = install_headers(tmp_path, "6.1.0-1-amd64")
    assert compiler.kernel_headers(tmp_path, RELEASE).build == own


def test_headers_in_one_folder_need_no_flags(tmp_path: Path) -> None:
    install_headers(tmp_path, RELEASE)
    assert compiler.kernel_headers(tmp_path, RELEASE).flags() == []


def test_headers_in_two_folders_are_joined_by_flags(tmp_path: Path) -> None:
    build = install_headers(tmp_path, RELEASE, split=True)
    headers = compiler.kernel_headers(tmp_path, RELEASE)
    assert headers.source == tmp_path / RELEASE / "source"
    assert f"-I{build}/include" in headers.flags()


@pytest.mark.parametrize(
    ("release", "wanted"),
    [
        ("6.1.0-28-cloud-amd64", "linux-headers-6.1.0-28-cloud-amd64"),
        ("5.15.0-91-generic", "linux-headers-5.15.0-91-generic"),
        ("6.5.0-0.deb12.4-amd64", "linux-headers-6.5.0-0.deb12.4-amd64"),
        (RELEASE, "linux-headers-amd64"),
        ("6.8.0", "linux-headers-amd64"),
    ],
)
def test_absent_headers_are_told_with_the_package_that_exists(
    tmp_path: Path, release: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(NetworkError, match=f"; run: apt-get install -y {wanted}$"):
        compiler.kernel_headers(tmp_path, release)


@compiles
@loads
def test_a_program_with_a_header_beside_it_compiles_and_loads(program: Path) -> None:
    compiled = compiler.compile_source(program, {})
    assert compiler.load_program(compiled, "probe") > 2


@compiles
def test_macros_reach_the_program(program: Path) -> None:
    (program.parent / "verdict.h").write_text(VERDICT % "return LIMIT;")
    with pytest.raises(NetworkError, match="LIMIT"):
        compiler.compile_source(program, {})
    compiler.compile_source(program, {"LIMIT": 2})


@compiles
def test_an_error_names_file_and_line(program: Path) -> None:
    program.write_text(PROGRAM.replace("verdict(skb)", "verdict(skb"))
    with pytest.raises(NetworkError) as caught:
        compiler.compile_source(program, {})
    assert str(caught.value).startswith(f"{program}:6: expected ')'")
    assert "\n" not in str(caught.value)


@compiles
def test_an_error_in_a_neighbouring_header_names_that(program: Path) -> None:
    (program.parent / "verdict.h").write_text(VERDICT % "return absent;")
    with pytest.raises(NetworkError) as caught:
        compiler.compile_source(program, {})
    assert str(caught.value).startswith(f"{program.parent / 'verdict.h'}:3: ")


@compiles
def test_the_files_own_warnings_are_logged(program: Path, caplog: pytest.LogCaptureFixture) -> None:
    (program.parent / "verdict.h").write_text(VERDICT % "int idle; return TC_ACT_OK;")
    compiler.compile_source(program, {})
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{program.parent / 'verdict.h'}:3: unused variable 'idle' [-Wunused-variable]"
    ]


@compiles
def test_warnings_about_foreign_headers_are_for_debugging_only(
    program: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = tmp_path_factory.mktemp("foreign") / "foreign.h"
    foreign.write_text(VERDICT.replace("verdict(", "other(") % "int idle; return TC_ACT_OK;")
    (program.parent / "verdict.h").write_text(f'#include "{foreign}"\n' + VERDICT % "return other(skb);")
    caplog.set_level(logging.DEBUG)
    compiler.compile_source(program, {})
    assert f"{foreign}:3:" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@compiles
def test_a_failure_leaves_the_process_as_it_was(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    before = Path.cwd(), os.fstat(2), set(Path("/proc/self/fd").iterdir())
    program.write_text("nonsense")
    with pytest.raises(NetworkError):
        compiler.compile_source(program, {})
    assert (Path.cwd(), os.fstat(2), set(Path("/proc/self/fd").iterdir())) == before
    assert "BCC_KERNEL_SOURCE" not in os.environ


@compiles
def test_two_threads_may_compile_at_once(program: Path) -> None:
    failures: list[BaseException] = []

    def compile_one(limit: int) -> None:
        try:
            compiler.compile_source(program, {"LIMIT": limit})
        except NetworkError as error:
            failures.append(error)

    threads = [threading.Thread(target=compile_one, args=(limit,)) for limit in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@compiles
@loads
def test_a_refusal_tells_the_verifiers_reason(program: Path) -> None:
    (program.parent / "verdict.h").write_text(VERDICT % "return *(int *)(long)skb->data;")
    compiled = compiler.compile_source(program, {})
    with pytest.raises(NetworkError, match=r"^BPF program probe: R1 .*packet"):
        compiler.load_program(compiled, "probe")


@compiles
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"absent\.c: No such file"):
        compiler.compile_source(tmp_path / "absent.c", {})
