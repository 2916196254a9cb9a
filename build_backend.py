"""The build backend of `pip install .`: maturin's, told which Python holds the torch to link.

torch-sys asks the first `python3` on the path where libtorch is. In an isolated build that may be another
interpreter than the one that pip runs, so the running one goes first. An isolated build also leaves behind
a target folder that names a torch which is gone by the next build; LIBRARY_PATH tells the linker where
torch is now.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from maturin import *  # noqa: F403 - the hooks of PEP 517 and 660 are maturin's

_interpreter_folder = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join([_interpreter_folder, os.environ.get("PATH", "")])

_torch = find_spec("torch")
if _torch is not None and _torch.origin is not None:
    _libraries = str(Path(_torch.origin).parent / "lib")
    os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, [_libraries, os.environ.get("LIBRARY_PATH")]))
