"""The build backend: maturin's, for the torch of the environment that the package goes into.

An extension fits one minor release of torch, so a wheel requires that, as in `torch==2.11.*`. It is, in this
order, the one beside the running Python, which pip's isolation hides from `import` only; the one of an
isolated build, which is BATCHFORMER_TORCH if that is set and else the newest.

`python build_backend.py COMMAND ...` runs cargo, or any other command, with what the build needs in the
environment; `python build_backend.py --release` prints the minor release of torch, `--releases` all that are
tested.
"""

import os
import re
import shutil
import sys
import sysconfig
import tempfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent
COMPAT = ROOT / "compat" / "torch_compat.h"
BUILT_FOR = "built_for.txt"  # beside the extension
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = PYPROJECT["tool"]["batchformer"]
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
RELATIVE = r"\((?!https?:|#)"  # the start of a link's address in Markdown
OLDEST, NEWEST = (tuple(map(int, SETTINGS["torch"][end].split("."))) for end in ("oldest", "newest"))


class Torch(NamedTuple):
    """An installed torch."""

    folder: Path
    version: str

    @property
    def minor(self) -> str:
        """As in "2.11", the release that an extension fits."""
        return ".".join(self.version.split(".")[:2])


# The hooks of PEP 517 and 660. There is none for metadata alone: it depends on the torch that is built for.


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Nothing more than pyproject.toml asks for."""
    return []


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """A torch to build with if there is none."""
    _check_tools()
    if find_torch() is not None:
        return []
    asked = os.environ.get("BATCHFORMER_TORCH")
    return [f"torch=={asked}" if asked else f"torch>={SETTINGS['torch']['oldest']}"]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """The sources, for any torch."""
    import maturin

    name = maturin.build_sdist(sdist_directory, config_settings)
    archive = Path(sdist_directory, name)
    folder = name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        shutil.unpack_archive(archive, unpacked)
        file = Path(unpacked, folder, "PKG-INFO")
        version = folder.split("-")[1]
        metadata = _with_whole_addresses(file.read_text(), version)
        line = f"Version: {version}\n"
        file.write_text(metadata.replace(line, f"{line}Dynamic: Requires-Dist\n", 1))  # a wheel has them all
        shutil.make_archive(str(archive.with_name(folder)), "gztar", unpacked, folder)
    return name


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel for the torch that is found; the setting `torch-in-version` tells those of several apart."""
    _check_packages()
    import maturin

    settings = dict(config_settings or {})
    tagged = settings.pop("torch-in-version", None) is not None
    torch = _prepare()
    print(f"building batchformer for torch {torch.version} in {torch.folder}", file=sys.stderr)
    name = maturin.build_wheel(wheel_directory, settings)
    return _say_what_for(torch, Path(wheel_directory), name, tagged=tagged)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel that points here, and the extension beside the sources."""
    _check_packages()
    import maturin

    torch = _prepare()
    name = maturin.build_editable(wheel_directory, config_settings)
    (ROOT / "python" / "batchformer" / BUILT_FOR).write_text(torch.minor + "\n")
    return _say_what_for(torch, Path(wheel_directory), name)


def find_torch() -> Torch | None:
    """In the environment of this Python, or on its path."""
    folders = [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    spec = find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent)
    for folder in folders:
        if (folder / "version.py").exists():
            found = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text())
            if found is not None:
                return Torch(folder, found[1])
    return None


def environment(torch: Torch) -> dict[str, str]:
    """What torch-sys, the C++ compiler, the linker and PyO3 need to build for this torch."""
    flags = [
        os.environ.get("CXXFLAGS"),
        # torch's headers bring pybind11 into the extension, where nothing calls it; its own GIL management
        # would still ask for a symbol that CPython 3.13 took away, and the wheel is one for all.
        "-DPYBIND11_SIMPLE_GIL_MANAGEMENT",
        # What later releases of torch ask for; the last of several counts.
        "-std=c++20",
        f"-include {COMPAT.name}",
        f"-DBATCHFORMER_OLDEST_TORCH_MINOR={OLDEST[1]}",
        # torch-sys is compiled anew if its flags change, not if torch or the header does.
        f"-DBATCHFORMER_BUILT_WITH={zlib.crc32(torch.version.encode() + COMPAT.read_bytes())}",
    ]
    first = {
        "PATH": Path(sys.executable).parent,  # of several Pythons torch-sys asks the first
        "LIBRARY_PATH": torch.folder / "lib",
        "CPLUS_INCLUDE_PATH": COMPAT.parent,
    }
    paths = {
        name: os.pathsep.join(filter(None, [str(folder), os.environ.get(name)]))
        for name, folder in first.items()
    }
    return paths | {
        "CXXFLAGS": " ".join(filter(None, flags)),
        "LIBTORCH": str(torch.folder),
        "LIBTORCH_CXX11_ABI": "1",
        "PYO3_USE_ABI3_FORWARD_COMPATIBILITY": "1",  # PyO3 0.24 knows CPython up to 3.13, abi3 has no end
    }


def _main(command: list[str]) -> None:
    if command == ["--releases"]:
        print(*(f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)))
        return
    torch = _prepare()
    if command == ["--release"]:
        print(torch.minor)
        return
    os.execvp(command[0], command)


def _prepare() -> Torch:
    """The torch to build for, with all that the build needs in the environment."""
    _check_tools()
    torch = find_torch()
    if torch is None:
        raise SystemExit(
            "batchformer is built against torch, and there is none: pip install torch, or build in isolation"
        )
    minor = tuple(map(int, torch.minor.split(".")))
    if minor < OLDEST:
        oldest = SETTINGS["torch"]["oldest"]
        raise SystemExit(f"batchformer needs torch {oldest} or later, and this is torch {torch.version}")
    if minor > NEWEST:
        newest = SETTINGS["torch"]["newest"]
        print(
            f"batchformer is tested up to torch {newest}; trying to build it for {torch.version}. "
            "If it does not compile, compat/torch_compat.h has to say what torch has removed.",
            file=sys.stderr,
        )
    os.environ.update(environment(torch))
    os.environ.pop("LIBTORCH_USE_PYTORCH", None)
    return torch


def _check_tools() -> None:
    """Before anything is downloaded or compiled."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise SystemExit(
            "batchformer needs a CPython with the GIL: its extension is one for all versions (abi3), which "
            "free-threaded ones do not load"
        )
    compiler = (os.environ.get("CXX", "").split() or ["c++"])[0]
    for tool, remedy in {
        "cargo": "install Rust, https://rustup.rs",
        compiler: "install one (Debian: apt install g++), or name it in CXX",
    }.items():
        if shutil.which(tool) is None:
            raise SystemExit(
                "building batchformer from source needs Rust 1.89 or newer and a C++ compiler, and there is "
                f"no `{tool}`: {remedy}. A prebuilt wheel needs neither."
            )


def _check_packages() -> None:
    """Before minutes of compiling, where a build without isolation finds not all that it requires."""
    missing = [name for name in ("maturin", "wheel") if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"building batchformer without isolation needs {' and '.join(missing)} in the environment: pip "
            f"install {' '.join(missing)}"
        )


def _say_what_for(torch: Torch, folder: Path, name: str, *, tagged: bool = False) -> str:
    """The wheel again, with its torch in the requirements, and in the version if tagged; its name."""
    from wheel.wheelfile import WheelFile

    built = folder / name
    distribution, version, tags = name.split("-", 2)
    new = f"{version}+torch{torch.minor}" if tagged else version
    with tempfile.TemporaryDirectory() as unpacked:
        with WheelFile(built) as wheel:
            wheel.extractall(unpacked)
        built.unlink()
        info = Path(unpacked, f"{distribution}-{version}.dist-info")
        info = info.rename(info.with_name(f"{distribution}-{new}.dist-info"))
        requirements = [*SETTINGS["dependencies"], f"torch=={torch.minor}.*"]
        lines = [f"Version: {new}", *(f"Requires-Dist: {requirement}" for requirement in requirements)]
        metadata = _with_whole_addresses((info / "METADATA").read_text(), version)
        (info / "METADATA").write_text(metadata.replace(f"Version: {version}\n", "\n".join([*lines, ""]), 1))
        package = Path(unpacked, "batchformer")
        if package.exists():  # not in an editable wheel
            (package / BUILT_FOR).write_text(torch.minor + "\n")
        (info / "RECORD").unlink()
        name = f"{distribution}-{new}-{tags}"
        with WheelFile(folder / name, "w") as wheel:
            wheel.write_files(unpacked)
    return name


def _with_whole_addresses(metadata: str, version: str) -> str:
    """Metadata whose readme shows its pictures and follows its links outside of the repository, too."""
    pictures = rf"\1({REPOSITORY}/raw/v{version}/"
    return with_whole_links(re.sub(rf"(!\[[^]]*\]){RELATIVE}", pictures, metadata), f"v{version}")


def with_whole_links(text: str, reference: str) -> str:
    """Markdown whose relative links, pictures aside, lead to the repository at a branch or tag."""
    return re.sub(rf"(?<!!)(\[[^]]*\]){RELATIVE}", rf"\1({REPOSITORY}/blob/{reference}/", text)


if __name__ == "__main__":
    _main(sys.argv[1:])
