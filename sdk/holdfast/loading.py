"""Finding the user's App in a file or a module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from holdfast.app import App


class AppError(Exception):
    """The app cannot be loaded; the message is for the user, with the traceback of their own code where there is one."""


def load_app(target: str) -> App:
    """The App of `path/to/app.py`, `package.module` or either with `:name` behind it. Raises AppError.

    Without a name, the module's only App is taken. A file is imported under its stem (or as a part of its package when
    it lies in one), with its folder, or its package's, on sys.path.
    """
    path, _, name = target.partition(":") if not Path(target).exists() else (target, "", "")
    try:
        module = _import_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
    except AppError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name and (path == error.name or path.startswith(error.name + ".")):
            raise AppError(f"{target}: no module named {error.name!r}") from None
        raise AppError(f"{target} does not import:\n\n{_their_traceback(error)}") from None
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
    sys.path.insert(0, str(root))
    return importlib.import_module(".".join(parts))


def _their_traceback(error: BaseException) -> str:
    """The traceback without our frames and importlib's, down to the user's own code."""
    trace = traceback.TracebackException.from_exception(error)
    ours = str(Path(__file__).parent)
    trace.stack = traceback.StackSummary.from_list(
        [frame for frame in trace.stack if not frame.filename.startswith((ours, "<frozen importlib"))]
    )
    return "".join(line for line in trace.format(chain=False) if "importlib/__init__.py" not in line).rstrip()
