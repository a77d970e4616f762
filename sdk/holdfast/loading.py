"""Loads the user's App from a file or a module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from holdfast.app import App

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class AppError(Exception):
    """The app cannot be loaded. The message is for the user, and has the traceback of the user's
    own code if there is one.
    """


def load_app(target: str) -> App:
    """Return the App of `path/to/app.py` or `package.module`, either with `:name` behind it. Raise
    AppError.

    Without a name, the module must have exactly one App. A file is imported under its stem, or as a
    part of its package if it lies in one. If the name of the file is also the name of an installed
    package or of one of Python's own modules, it is imported under another name.

    A module is looked for in the working folder first. That folder, or the folder of the file, is
    put on sys.path behind Python's own modules.
    """
    path, _, name = target.partition(":") if not Path(target).exists() else (target, "", "")
    try:
        module = _import_file(Path(path)) if path.endswith(".py") else _import_module(path)
    except AppError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and (path == error.name or path.startswith(error.name + "."))
        ):
            raise AppError(f"{target}: no module named {error.name!r}") from None
        raise AppError(f"{target} cannot be imported:\n\n{_their_traceback(error)}") from None
    if name:
        app = getattr(module, name, None)
        if not isinstance(app, App):
            raise AppError(f"{target}: {name!r} is {'missing' if app is None else 'not an App'}")
        return app
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if len(apps) != 1:
        found = "no App" if not apps else f"{len(apps)} Apps; name one as {path}:NAME"
        raise AppError(f"{target} has {found}. An app file has `app = App()` at module level.")
    app = next(iter(apps.values()))
    if not app.kinds:
        raise AppError(f"{target}: its App has no kinds; decorate a class with @app.kind")
    return app


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise AppError(f"{path}: no such file")
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    _look_in(root)
    name = ".".join(parts)
    try:
        found = importlib.util.find_spec(parts[0])
    except ValueError:  # `__main__` has no spec
        found = None
    if found is not None and found.origin is not None and _in(root, found):
        return importlib.import_module(name)
    if len(parts) > 1:
        raise AppError(
            f"{path}: its package {parts[0]!r} has the name of an installed package; give it"
            " another name"
        )
    # Python has a module of that name already, which libraries may need. So the app gets another
    # name.
    spec = importlib.util.spec_from_file_location(f"holdfast_app_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _in(root: Path, found: ModuleSpec) -> bool:
    """Return whether a module or package lies directly in a folder."""
    assert found.origin is not None
    origin = Path(found.origin)
    return (origin.parent.parent if origin.name == "__init__.py" else origin.parent) == root


def _import_module(name: str) -> ModuleType:
    _look_in(Path.cwd())
    return importlib.import_module(name)


def _look_in(folder: Path) -> None:
    """Make Python look for modules in a folder: before installed packages, and after Python's own
    modules.
    """
    if str(folder) not in sys.path:
        own = sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")
        last = max(
            (
                i
                for i, place in enumerate(sys.path)
                if place.startswith(own) and "-packages" not in place
            ),
            default=-1,
        )
        sys.path.insert(last + 1, str(folder))


def source_folder(target: str) -> Path | None:
    """Return the folder with the Python files of a loaded app; None if the module is not loaded
    from files.
    """
    path = target if Path(target).exists() else target.partition(":")[0]
    if path.endswith(".py"):
        root = Path(path).resolve().parent
        while (root / "__init__.py").exists():
            root = root.parent
        return root
    origin = getattr(sys.modules.get(path.partition(".")[0]), "__file__", None)
    if origin is None:
        return None
    folder = Path(origin).resolve().parent
    # the folder alone: beside a package there may be all that is installed
    return Path.cwd() if Path.cwd() in (folder, folder.parent) else folder


def _their_traceback(error: BaseException) -> str:
    """Return the traceback without our frames and those of importlib: only the user's own code."""
    trace = traceback.TracebackException.from_exception(error)
    ours = str(Path(__file__).parent)
    trace.stack = traceback.StackSummary.from_list(
        [
            frame
            for frame in trace.stack
            if not frame.filename.startswith((ours, "<frozen importlib"))
        ]
    )
    return "".join(
        line for line in trace.format(chain=False) if "importlib/__init__.py" not in line
    ).rstrip()


def _main() -> None:
    """Check whether APP can be loaded (`python -m holdfast.loading APP`), and say why if not."""
    try:
        load_app(sys.argv[1])
    except AppError as error:
        print(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    _main()
