"""Say which public functions, classes, methods and parameters of the package lack a docstring or a
docment.

A parameter's docment is the comment beside it; the fields of a dataclass count where they are
declared, and the parameters of a method where the package first defines it: overriding methods need
a docstring of their own only, and what several methods of a class take counts where it comes first.
A docstring that names a parameter in backticks describes it as well.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass

from fastcore.docments import docments

import nercrf

FEWEST_MODULES = 30  # that a check must have seen
FEWEST_NAMES = 400


def public_members(module_name: str) -> Iterator[tuple[str, object]]:
    "Functions, classes and methods that a module offers, by dotted name."
    module = importlib.import_module(f"nercrf.{module_name}")
    for name in getattr(module, "__all__", []):
        member = getattr(module, name)
        if getattr(member, "__module__", "") != module.__name__ or not (
            inspect.isclass(member) or callable(member)
        ):
            continue
        yield f"{module_name}.{name}", member
        for method, function in vars(member).items() if inspect.isclass(member) else ():
            function = getattr(function, "__func__", function)
            if (
                inspect.isfunction(function)
                and not method.startswith("_")
                and function.__module__ == module.__name__
            ):
                yield f"{module_name}.{name}.{method}", function


def named_parameters(function: object) -> set[str]:
    "The parameters of a function, without self and without a catch-all."
    parameters = inspect.signature(function).parameters.values()
    catch_all = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {each.name for each in parameters if each.kind not in catch_all} - {
        "self",
        "cls",
        "typing_context",
    }


def overrides(member: object) -> bool:
    "Is it a method that a class of the package below its own defines already?"
    if not inspect.isfunction(member) or member.__qualname__.count(".") != 1:
        return False
    owner, method = member.__qualname__.split(".")
    bases = inspect.getmro(getattr(importlib.import_module(member.__module__), owner))[1:]
    return any(base.__module__.startswith("nercrf.") and method in vars(base) for base in bases)


def described_by_siblings(member: object) -> set[str]:
    "Parameters that the methods before this one in its class describe, its constructor aside."
    if not inspect.isfunction(member) or member.__qualname__.count(".") != 1:
        return set()
    owner = getattr(importlib.import_module(member.__module__), member.__qualname__.split(".")[0])
    found: set[str] = set()
    for each in vars(owner).values():
        if each is member:
            break
        if inspect.isfunction(each) and not each.__name__.startswith("__"):
            found |= {parameter for parameter, text in docments(each).items() if text}
            found |= set(re.findall(r"`(\w+)`", inspect.getdoc(each) or ""))
    return found


def gaps(name: str, member: object) -> list[str]:
    "What a member does not say."
    if overrides(member):
        return [] if inspect.getdoc(member) else [f"{name}: no docstring"]
    found = [] if inspect.getdoc(member) else [f"{name}: no docstring"]
    member = getattr(member, "py_func", member)  # what numba has compiled
    if inspect.isclass(member) and issubclass(member, tuple):
        fields = set(member._fields)
        described = set(re.findall(r"^\s+(\w+):.*#", inspect.getsource(member), re.MULTILINE))
    elif is_dataclass(member):
        parts = [base for base in inspect.getmro(member) if base.__module__.startswith("nercrf.")]
        fields = {field for base in parts for field in getattr(base, "__annotations__", {})}
        described = {field for base in parts for field, text in docments(base).items() if text}
    else:
        function = member.__dict__.get("__init__") if inspect.isclass(member) else member
        fields = named_parameters(function) if function else set()
        described = (
            {field for field, text in docments(function).items() if text} if function else set()
        )
        described |= described_by_siblings(member)
        described |= set(re.findall(r"`(\w+)`", inspect.getdoc(member) or ""))
    missing = sorted(each for each in fields - described if not each.startswith("_"))
    return found + [f"{name}({field}): no docment" for field in missing]


def main() -> int:
    "Print the gaps."
    modules = sorted(
        module.name.removeprefix("nercrf.")
        for module in pkgutil.walk_packages(nercrf.__path__, "nercrf.")
        if not module.ispkg and module.name != "nercrf._modidx"
    )
    members = [pair for module in modules for pair in public_members(module)]
    found = [gap for name, member in members for gap in gaps(name, member)]
    if len(modules) < FEWEST_MODULES or len(members) < FEWEST_NAMES:
        found.append(
            f"{len(modules)} modules and {len(members)} names seen, expected at least "
            f"{FEWEST_MODULES} and {FEWEST_NAMES}"
        )
    seen = f"{len(members)} public functions, classes and methods of {len(modules)} modules"
    print("\n".join(found) or f"{seen} are documented")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
