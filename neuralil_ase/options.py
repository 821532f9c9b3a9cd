"""The settings of a training run as options of the command line, with help texts from their docstring."""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

from neuralil_ase.training.settings import TrainingSettings


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add every setting as ``--option``; options that are not given stay unset."""
    texts = help_texts(TrainingSettings)
    for field in fields(TrainingSettings):
        text = f"{texts.get(field.name, '')} {_default(field)}".strip().replace("%", "%%")
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, help=text, default=argparse.SUPPRESS, **_kind(field.type))


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings among the parsed options."""
    names = {field.name for field in fields(TrainingSettings)}
    return {name: value for name, value in vars(namespace).items() if name in names}


def help_texts(cls: type) -> dict[str, str]:
    """Descriptions of the attributes, by name, from a docstring in numpy style, in the words of the command line."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.getdoc(cls).__str__().partition("----------\n")[2].splitlines():
        if line.startswith(" "):
            for name in names:
                texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
        else:
            names = re.findall(r"\w+", line)
    options = {*texts, "start_from"}
    return {name: _of_command_line(text, options) for name, text in texts.items()}


def _of_command_line(text: str, options: Set[str]) -> str:
    """Options instead of names in Python, "none" instead of (), and the form of other help texts."""
    text = re.sub(
        r"``(\S+)``",
        lambda code: f"--{code[1].replace('_', '-')}" if code[1] in options else code[1],
        text,
    )
    text = re.sub(r"(?<!\S)\(\)(?!\S)", '"none"', text)
    return text[:1].lower() + text[1:].removesuffix(".")


def _kind(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind == tuple[str, ...]:
        return {"nargs": "+", "metavar": "FILE", "type": str}
    if kind == tuple[int, ...]:
        return {"type": _integers, "metavar": "N,N,…|none"}
    if kind == Mapping[str, float]:
        return {"type": _energies, "metavar": "H=E,C=E,…"}
    plain: dict[Any, tuple[Callable[[str], Any], str]] = {
        int: (int, "N"),
        float: (float, "X"),
        str: (str, "NAME"),
    }
    reader, metavar = plain[kind]
    return {"type": reader, "metavar": metavar}


def _default(field: "Field[Any]") -> str:
    if field.default in (None, (), MISSING):
        return ""
    value = field.default
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"[{shown}]"


def _integers(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers like 64,32,16"
        ) from error


def _energies(text: str) -> dict[str, float]:
    try:
        pairs = [word.split("=") for word in text.split(",") if word]
        return {symbol.strip(): float(energy) for symbol, energy in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of energies in eV like H=-10.7,C=-48.8"
        ) from error
