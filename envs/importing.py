"""Imports what a user names: an installed module, one in the current folder, or a file."""

import contextlib
import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from envs.errors import UserError

_MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
OWN_CLASS = re.compile(rf"({_MODULE}|[^\n\x00]*\.py):[^\W\d]\w*")  # module:Class, or folder/file.py:Class


def is_file(module: str) -> bool:
    return module.endswith(".py")


def is_ours(module: str) -> bool:
    """Whether a module is Gymnasium's or of this package: data may name these, and no others."""
    return re.fullmatch(r"(gymnasium|envs)(\.\w+)*", module) is not None and not is_file(module)


def import_named(module: str) -> ModuleType:
    """The module `package.module`, or that of the file `folder/module.py`.

    Modules that Python finds by itself come first, then those in the current folder. What a module prints goes to
    stderr.

    Raises:
        UserError: there is none, or it raises whatever it may; the text is the reason, in one line.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if is_file(module):
                return load_file(Path(module))
            if not re.fullmatch(_MODULE, module):
                raise UserError("it is neither a module nor a file of Python, folder/file.py")
            return importlib.import_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_reason(error, module)) from error


def import_attribute(name: str) -> Any:
    """What "module:Class" or "folder/file.py:Class" names.  UserError where there is none, with the nearest match."""
    module, _, attribute = name.rpartition(":")
    found = import_named(module)
    try:
        exists = hasattr(found, attribute)
    except (Exception, SystemExit) as error:  # a module may import its parts only now
        raise UserError(said(error)) from error
    if not exists:
        near = difflib.get_close_matches(attribute, [key for key in vars(found) if not key.startswith("_")], n=1)
        hint = f"; did you mean '{module}:{near[0]}'?" if near else ""
        raise UserError(f"module '{module}' has no attribute '{attribute}'{hidden(module, found) or hint}")
    return getattr(found, attribute)


def load_file(path: Path) -> ModuleType:
    """The module that a file holds, imported once. Where its folder is a package, relative imports work."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    for module in list(sys.modules.values()):  # as the file itself, by its name or as the program that runs
        if getattr(module, "__file__", None) == str(path):
            return module
    folder = path.parent
    if (folder / "__init__.py").is_file():
        package = _load(str(folder), folder / "__init__.py", [str(folder)])
        return package if path.name == "__init__.py" else importlib.import_module(f"{folder}.{path.stem}")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for the files beside it
    return _load(str(path), path, None)


def load_creator(entry_point: str, beside: Path) -> Any | None:
    """What an entry point names that a file registers, where Python would look from its folder or the one above."""
    module, _, attribute = entry_point.partition(":")
    for folder in (beside.resolve().parent.parent, beside.resolve().parent):
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        if file.is_file():
            return import_attribute(f"{file}:{attribute}")
    return None


def _load(name: str, path: Path, search: list[str] | None) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    assert spec is not None and spec.loader is not None, f"{path} is Python"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reason(error: BaseException, module: str) -> str:
    if is_file(module) and isinstance(error, FileNotFoundError) and not Path(module).expanduser().is_file():
        folder = Path(module).expanduser().parent
        near = difflib.get_close_matches(Path(module).name, [path.name for path in folder.glob("*.py")], n=1)
        return "there is no such file" + (f"; did you mean '{folder / near[0]}'?" if near else "")
    if isinstance(error, ModuleNotFoundError) and error.name is not None and not is_file(module):
        if module == error.name or module.startswith(f"{error.name}."):
            return f"No module named '{error.name}'{hidden(module) or _nearest(error.name) or _install(error.name)}"
    return said(error)


def said(error: BaseException) -> str:
    """What a module of the user's raised, and where."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {text}"  # which says where
    own = (__file__, importlib.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in own and f.filename[0] != "<"]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def hidden(module: str, found: ModuleType | None = None) -> str:
    """Of a file in the current folder that another module of the same name hides: how to name it."""
    if is_file(module):
        return ""
    for file in (Path(*module.split(".")).with_suffix(".py"), Path(*module.split("."), "__init__.py")):
        if file.is_file() and (found is None or Path(getattr(found, "__file__", None) or "/") != file.resolve()):
            return f"; a module of the same name hides your file, name it outright: ./{file}"
    return ""


def _install(module: str) -> str:
    return "" if "." in module else "; install the package that has it"


def _nearest(module: str) -> str:
    if "." in module:
        return ""
    names = [found.name for found in pkgutil.iter_modules()]
    near = difflib.get_close_matches(module, names, n=1, cutoff=0.8)
    return f"; did you mean '{near[0]}'?" if near else ""
