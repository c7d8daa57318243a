"""Modules that a test writes, as a user would add a file to the package."""

import importlib.util
import pathlib
import types


def write_module(path: pathlib.Path, source: str) -> types.ModuleType:
    """Writes the source of a module and loads it."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
