"""A section of an input file: strict about its keys, with errors in the user's words.

A key that is unknown, or that asks for something dpserver does not do, is a `ConfigError` that names the full dotted
key; nothing is silently ignored except what DeePMD-kit itself ignores (keys that begin with an underscore) and what
has no effect here.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dpserver.errors import ConfigError

Bool = Annotated[bool, Strict()]
Str = Annotated[str, Strict(), Field(min_length=1)]
Count = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[int, Strict(), Field(gt=0)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0)]
Table = Mapping[str, Any]

UNSPOKEN_TAG: Final = "none"
"""The `type` of a section that only finished models have."""
_NO_SECTION: Final = frozenset({"model_type", "model_attributes_type", "dict_type"})
"""What pydantic says, by its classes, of a value that stands where a section should."""
UNSUPPORTED: Final = object()
"""In a `fixed` table: no value of this key is supported."""


def complain(key: str, problem: str) -> PydanticCustomError:
    """An error about one key of the section whose validator raises it."""
    return PydanticCustomError("dpserver", "{problem}", {"key": key, "problem": problem})


class Section(BaseModel):
    """A section of the input: frozen, strict about keys and types.

    Attributes:
        aliases: other accepted names of fields.
        fixed: keys of DeePMD-kit that have one value dpserver can honour, and that value (or `UNSUPPORTED`).
        inert: keys of DeePMD-kit that are accepted and change nothing here.
        hints: keys that belong elsewhere, and where.
        unspoken: fields that only finished models have; no message points to them.
        advice: what to write for required keys that are missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    aliases: ClassVar[Table] = {}
    fixed: ClassVar[Table] = {}
    inert: ClassVar[frozenset[str]] = frozenset()
    hints: ClassVar[Table] = {}
    unspoken: ClassVar[frozenset[str]] = frozenset()
    advice: ClassVar[Table] = {}

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, data: Any) -> Any:
        """Drop comments and keys without effect, and put a field's own name in place of an alias."""
        if not isinstance(data, Mapping):
            return data
        kept: dict[str, Any] = {}
        for key, value in data.items():
            name = cls.aliases.get(key, key)
            if str(key).startswith("_") or key in cls.inert:
                continue
            if key in cls.hints:
                raise complain(key, cls.hints[key])
            if key in cls.fixed:
                _check_fixed(key, value, cls.fixed[key])
            elif name in kept:
                raise complain(key, f"says the same as {name}, which is given too; keep one of them")
            else:
                kept[name] = value
        return kept

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that may be written in this section, aliases included."""
        return [
            *(name for name in cls.model_fields if name not in cls.unspoken),
            *cls.aliases,
            *(k for k, v in cls.fixed.items() if v is not UNSUPPORTED),
            *sorted(cls.inert),
        ]


def _check_fixed(key: str, value: Any, only: Any) -> None:
    if only is UNSUPPORTED:
        raise complain(key, "dpserver does not support this key of DeePMD-kit; leave it out")
    if value != only or isinstance(value, bool) != isinstance(only, bool):
        raise complain(key, f"{_shown(value)} is not supported by dpserver; supported: {_shown(only)} (the default)")


S = TypeVar("S", bound=Section)


def parse(section: type[S], data: object, path: str = "") -> S:
    """Validate one section.

    Args:
        section: its class.
        data: plain values, as JSON gives them.
        path: dotted name of the section in the file; empty for the whole file.

    Raises:
        ConfigError: naming every dotted key that is unknown, unsupported, missing or of the wrong kind.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        problems = [_describe(section, path, dict(e)) for e in error.errors(include_url=False)]
        raise ConfigError("; ".join(dict.fromkeys(problems))) from None


def _describe(root: type[Section], path: str, error: dict[str, Any]) -> str:
    """One pydantic error as `dotted.key: what is wrong`."""
    names, owner = _locate(root, error["loc"])
    kind, got = error["type"], error["input"]
    context = error.get("ctx", {})
    if kind == "dpserver":
        return f"{_dotted(path, [*names, context['key']])}: {context['problem']}"
    key = _dotted(path, names)
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {_nearest(root, owner, path, names)}"
    if kind == "missing":
        advice = owner.advice.get(str(names[-1]), "")
        return f"{key}: this key is required{advice and ', '}{advice}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = context.get(
            "expected_tags", "se_e2_a, se_e2_r, se_e3, se_atten, se_atten_v2, loc_frame, behler_parrinello, hybrid"
        )
        tags = tags.replace(f", '{UNSPOKEN_TAG}'", "")
        return f"{key}.type: supported are {tags}; {_shown_type(got)}"
    if kind in _NO_SECTION:
        return f"{key}: must be keys with their values in braces, {{ … }}, got {_shown(got)}"
    message = str(context.get("error", error["msg"]))
    return f"{key}: {message[:1].lower()}{message[1:]}, got {_shown(got)}"


def _shown_type(got: Any) -> str:
    if isinstance(got, Mapping) and "type" in got:
        return f"got {_shown(got['type'])}"
    return "none is given"


def _locate(root: type[Section], loc: tuple[int | str, ...]) -> tuple[list[int | str], type[Section]]:
    """The keys of an error's place without the tags pydantic puts between them, and the section it lies in."""
    owner, candidates = root, [root]
    names: list[int | str] = []
    for part in loc:
        if isinstance(part, int):
            names.append(part)
            continue
        if len(candidates) > 1:
            candidates = [c for c in candidates if part in typing.get_args(c.model_fields["type"].annotation)]
            continue
        names.append(part)
        if candidates:
            owner = candidates[0]
            candidates = [c for key, field in _fields(owner) if key == part for c in _sections(field)]
    return names, owner


def _fields(section: type[Section]) -> Iterator[tuple[str, Any]]:
    return ((name, field.annotation) for name, field in section.model_fields.items())


def _sections(annotation: Any) -> list[type[Section]]:
    """The section classes an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, tuple):
        return [section for arg in typing.get_args(annotation) for section in _sections(arg)]
    return []


def _dotted(path: str, names: list[int | str]) -> str:
    text = path
    for name in names:
        text += f"[{name}]" if isinstance(name, int) else f".{name}" if text else name
    return text


def _nearest(root: type[Section], owner: type[Section], path: str, names: list[int | str]) -> str:
    """Advice for an unknown key: the most similar one of its section, the same one elsewhere, or all of them."""
    key, section = str(names[-1]), names[:-1]
    if similar := difflib.get_close_matches(key, owner.known_keys(), n=1):
        name = owner.aliases.get(similar[0], similar[0])
        return f"did you mean {_dotted(path, [*section, name])}?"
    if elsewhere := dict.fromkeys(place for known, place in _all_keys(root, path) if known == key):
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"known here are {', '.join(owner.known_keys())}"


def _all_keys(section: type[Section], path: str) -> Iterator[tuple[str, str]]:
    """Every key of a section and of those within it, and its dotted place; an alias has the place of its field."""
    for key in section.known_keys():
        yield key, _dotted(path, [section.aliases.get(key, key)])
    for key, annotation in _fields(section):
        if key in section.unspoken:
            continue
        for child in () if typing.get_origin(annotation) is tuple else _sections(annotation):
            yield from _all_keys(child, _dotted(path, [key]))


def _shown(value: Any) -> str:
    """A value as it stands in the file."""
    return json.dumps(value, ensure_ascii=False, default=repr)
