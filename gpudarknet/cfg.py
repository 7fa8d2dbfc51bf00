"""Parse .cfg files: text -> sections -> one typed record per layer. Every error and warning names file and line.

The grammar is Darknet's (src/parser.c, src/option_list.c): whitespace is removed everywhere, comments take whole lines, the
first of duplicate keys is used, a number ends at the first character that cannot be part of it.
"""

from __future__ import annotations

import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from .errors import CfgError, CfgWarning, DataError, did_you_mean
from .io.text import read_text
from .layers import SECTIONS, Layer
from .layers.limits import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Diagnostic, Limit, Record, between, check

MAX_BATCH = 1 << 20  # images; the upper limit is for hostile cfgs
MIXING = ("", "mixup", "cutmix", "mosaic", "cutmix or mosaic")


@dataclass(frozen=True, kw_only=True)
class Net(Record):
    """The [net] section: input size, batch, optimizer, augmentation. Sizes in pixels; see Darknet's wiki on [net]."""

    section: ClassVar[str] = "net"
    ignored: ClassVar[frozenset[str]] = frozenset(
        "sequential_subdivisions dynamic_minibatch try_fix_nan weights_reject_freq contrastive contrastive_jit_flip"
        " contrastive_color unsupervised attention adversarial_lr use_cuda_graph optimized_memory"
        " workspace_size_limit_MB show_receptive_field".split()
    )
    unsupported: ClassVar[frozenset[str]] = frozenset()
    fallback: ClassVar[dict[str, str]] = {"policy": "constant"}
    limits = NOT_NEGATIVE.of("width", "height", "channels", "inputs") | between(1, MAX_BATCH).of(
        "batch", "subdivisions", "time_steps"
    )
    training_limits: ClassVar[dict[str, Limit]] = {
        **NOT_NEGATIVE.of(
            "learning_rate",
            "decay",
            "burn_in",
            "sgdr_cycle",
            "saturation",
            "exposure",
            "aspect",
            "blur",
            "power",
            "gamma",
            "scale",
        ),
        **NOT_NEGATIVE.of("gaussian_noise", "max_crop", "min_crop", "num_sigmas_reject_badlabels"),
        **BELOW_ONE.of("label_smooth_eps"),
        **FRACTION.of("momentum", "ema_alpha"),
        **POSITIVE.of("loss_scale"),
        **COUNT.of("resize_step"),
        **between(0, len(MIXING) - 1).of("mixup"),
        **between(0, 100).of("badlabels_rejection_percentage"),
    }

    width: int = 0
    height: int = 0
    channels: int = 0
    inputs: int = 0  # default: width * height * channels
    batch: int = 1
    subdivisions: int = 1
    time_steps: int = 1

    learning_rate: float = 0.001
    learning_rate_min: float = 0.00001
    momentum: float = 0.9
    decay: float = 0.0001
    max_batches: int = 0
    policy: Literal["random", "poly", "constant", "step", "exp", "sigmoid", "steps", "sgdr"] = "constant"
    burn_in: int = 0
    power: float = 4.0
    step: int = 1
    scale: float = 1.0
    steps: tuple[int, ...] | None = None
    scales: tuple[float, ...] | None = None
    seq_scales: tuple[float, ...] | None = None
    gamma: float = 1.0
    sgdr_cycle: int = 0  # 0: max_batches
    sgdr_mult: int = 2
    adam: int = 0
    B1: float = 0.9
    B2: float = 0.999
    eps: float = 1e-6
    loss_scale: float = 1.0
    ema_alpha: float = 0.0
    max_chart_loss: float = 0.0  # 0: chosen by the losses
    equidistant_point: int = 0
    badlabels_rejection_percentage: float = 0.0
    num_sigmas_reject_badlabels: float = 0.0

    track: int = 0
    augment_speed: int = 2
    angle: float = 0.0
    aspect: float = 1.0
    saturation: float = 1.0
    exposure: float = 1.0
    hue: float = 0.0
    flip: int = 1
    blur: int = 0
    gaussian_noise: int = 0
    mixup: int = 0
    cutmix: int = 0
    mosaic: int = 0
    mosaic_bound: int = 0
    letter_box: int = 0
    max_crop: int = 0  # 0: 2 * width
    min_crop: int = 0  # 0: width
    resize_step: int = 32
    label_smooth_eps: float = 0.0

    def diagnostics(self) -> Iterator[Diagnostic]:
        """Yield what is wrong with the values of its keys, also with several together."""
        yield from super().diagnostics()
        yield from self.schedule_diagnostics()
        if self.adam:
            for key, limit in (("B1", BELOW_ONE), ("B2", BELOW_ONE), ("eps", NOT_NEGATIVE)):
                yield from check(key, getattr(self, key), limit, "training")
        if self.batch < self.subdivisions:
            yield Diagnostic(
                "subdivisions",
                f"subdivisions={self.subdivisions} is above batch={self.batch}, so no image is left for each",
                "training",
            )
        elif self.batch % self.subdivisions:
            used = self.batch // self.subdivisions * self.subdivisions
            yield Diagnostic(
                "subdivisions",
                f"subdivisions={self.subdivisions} does not divide batch={self.batch}; as in Darknet, {used} images are used",
                "warning",
            )

    def schedule_diagnostics(self) -> Iterator[Diagnostic]:
        """Yield what is wrong with the keys of the learning rate's policy; those of other policies have no effect."""
        steps = len(self.steps or ())
        if self.policy == "steps":
            for key in ("steps", "scales"):
                if getattr(self, key) is None:
                    yield Diagnostic("policy", f"policy=steps needs the key '{key}'")
        if self.policy in ("steps", "sgdr") and self.steps is not None:
            for key in ("scales", "seq_scales"):
                values = getattr(self, key)
                if values is not None and min(values) < 0:
                    yield Diagnostic(key, f"{key}: {min(values):g} must be at least 0", "training")
                if values is not None and len(values) != steps:
                    message = f"{key} has {len(values)} values, steps has {steps}"
                    if len(values) < steps:
                        yield Diagnostic(key, f"{message}; each step needs one")
                    else:
                        yield Diagnostic(key, f"{message}; the others have no effect", "warning")
            if list(self.steps) != sorted(self.steps):
                listed = ",".join(map(str, self.steps))
                yield Diagnostic(
                    "steps", f"steps={listed} are not in ascending order; a step waits for those before it", "warning"
                )
        if self.policy in ("poly", "sgdr"):
            limit = COUNT._replace(text=f"must be at least 1 for policy={self.policy}")
            yield from check("max_batches", self.max_batches, limit, "training")
        if self.policy == "step":
            yield from check("step", self.step, COUNT, "training")
        if self.policy == "sgdr":
            yield from check("sgdr_mult", self.sgdr_mult, COUNT, "training")

    @property
    def mixing(self) -> str:
        """How training combines images, one of MIXING: by mosaic and cutmix, else by mixup, which may also be an index."""
        return MIXING[4 if self.mosaic and self.cutmix else 2 if self.cutmix else 3 if self.mosaic else self.mixup]

    @property
    def input(self) -> tuple[int, int, int]:
        """(C, H, W) of one image; (inputs, 1, 1) for a network without images."""
        if self.width > 0 and self.height > 0 and self.channels > 0:
            return self.channels, self.height, self.width
        return self.inputs, 1, 1


@dataclass(frozen=True)
class Option:
    """One line `key=value`."""

    key: str
    value: str
    line: int


@dataclass(frozen=True)
class Section:
    """One [name] with its options, and its line in the file."""

    name: str
    line: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Config:
    """A parsed .cfg: the [net] record, a record per layer, the line of each layer's section; the lines of keys.

    training_errors: why it can run but not be trained, one message each.
    """

    path: str
    net: Net
    layers: tuple[Layer, ...]
    lines: tuple[int, ...]
    net_lines: Mapping[str, int] = field(default_factory=dict)  # of the keys of [net]
    key_lines: tuple[Mapping[str, int], ...] = ()  # of the keys of each layer
    training_errors: tuple[str, ...] = ()

    def line(self, index: int, *keys: str) -> int:
        """Return the line of the first of these keys that layer `index` has, else that of its section."""
        lines = self.key_lines[index] if self.key_lines else {}
        return next((lines[key] for key in keys if key in lines), self.lines[index])

    def net_key(self, key: str) -> str:
        """Return how messages name a key of [net]: `file:line: [net] key=value`."""
        line = f":{self.net_lines[key]}" if key in self.net_lines else ""
        value = getattr(self.net, key)
        return f"{self.path}{line}: [net] {key}={f'{value:g}' if isinstance(value, float) else value}"

    def check_trainable(self) -> None:
        """Raise CfgError if values that the network can run with would make its training impossible."""
        if self.training_errors:
            raise CfgError(self.training_errors[0])


def read(path: str | Path, strict: bool = False) -> Config:
    """Read a .cfg file. Raises CfgError; with `strict`, also in place of a CfgWarning."""
    return parse(read_text(path, CfgError), str(path), strict)


def parse(text: str, path: str = "cfg", strict: bool = False) -> Config:
    """Parse the text of a .cfg; `path` is used in messages and to resolve paths of other files."""
    report = Reporter(path, strict)
    parsed = sections(text, path, report)
    if not parsed:
        raise CfgError(f"{path}: has no [section]; a cfg begins with [net]")
    first, rest = parsed[0], parsed[1:]
    if first.name not in ("net", "network"):
        raise CfgError(f"{path}:{first.line}: the first section is [{first.name}]; a cfg begins with [net]")
    if not rest:
        raise CfgError(f"{path}:{first.line}: [net] is the only section; a network needs layers")
    net, net_lines = record(Net, first, report)
    layers, key_lines = [], []
    for section in rest:
        if section.name not in SECTIONS:
            raise CfgError(
                f"{path}:{section.line}: unknown section [{section.name}]{did_you_mean(section.name, SECTIONS)}"
            )
        layer, own_lines = record(SECTIONS[section.name], section, report)
        layers.append(layer)
        key_lines.append(own_lines)
    lines = tuple(section.line for section in rest)
    return Config(path, net, tuple(layers), lines, net_lines, tuple(key_lines), tuple(report.training_errors))


@dataclass(frozen=True)
class Reporter:
    """Report a problem: warn with a CfgWarning, or with `strict` raise a CfgError.

    training_errors: collects what makes training impossible.
    """

    path: str
    strict: bool
    training_errors: list[str] = field(default_factory=list)

    def diagnostic(self, section: Section, line: int, diagnostic: Diagnostic) -> None:
        """Report a value; raise CfgError if the network cannot run with it."""
        message = f"[{section.name}] {diagnostic.message}"
        if diagnostic.severity == "error":
            raise CfgError(f"{self.path}:{line}: {message}")
        if diagnostic.severity == "training":
            self.training_errors.append(f"{self.path}:{line}: {message}")
            message += "; the network cannot be trained"
        self(line, message)

    def __call__(self, line: int, message: str) -> None:
        """Report it with path and line."""
        text = f"{self.path}:{line}: {message}"
        if self.strict:
            raise CfgError(text)
        warnings.warn(text, CfgWarning, stacklevel=2)


def sections(text: str, path: str, report: Reporter) -> list[Section]:
    """Split the text, with or without a byte order mark, into sections with their options."""
    result: list[tuple[str, int, list[Option]]] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = re.sub(r"[ \t\r\n]", "", raw)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if not line.endswith("]"):
                raise CfgError(
                    f"{path}:{number}: section '{line[:60]}' does not end with ']'; a comment needs its own line"
                )
            result.append((line[1:-1], number, []))
            continue
        if not result:
            raise CfgError(f"{path}:{number}: '{line[:60]}' is before the first [section]; a cfg begins with [net]")
        key, equals, value = line.partition("=")
        if not equals or not value:
            report(number, f"'{line[:60]}' has no value and is skipped; write key=value")
            continue
        result[-1][2].append(Option(key, value, number))
    return [Section(name, line, tuple(options)) for name, line, options in result]


Kind = TypeVar("Kind", Net, Layer)


def record(kind: type[Kind], section: Section, report: Reporter) -> tuple[Kind, dict[str, int]]:
    """Turn a section's options into a record, by the types of its fields; return it with the lines of its keys."""
    kinds, values = schema(typing.cast(Any, kind)), {}
    seen: dict[str, int] = {}
    for option in section.options:
        key, place = option.key, f"[{section.name}]"
        if key in seen:
            report(option.line, f"{place} has '{key}' twice; the first, on line {seen[key]}, counts")
            continue
        seen[key] = option.line
        if key in kind.unsupported:
            if atof(option.value)[0] != 0:
                raise CfgError(f"{report.path}:{option.line}: {place} {key}={option.value} is not supported; remove it")
        elif key in kinds:
            values[field_name(key)] = convert(kind, section, option, kinds[key], report)
        elif key not in kind.ignored:
            report(option.line, f"{place} has no key '{key}'{did_you_mean(key, kinds)}")
    for f in fields(kind):
        if f.default is MISSING and f.name not in values:
            key = f.name.rstrip("_")
            raise CfgError(f"{report.path}:{section.line}: [{section.name}] needs the key '{key}'")
    result = kind(**values)
    for diagnostic in result.diagnostics():
        report.diagnostic(section, seen.get(diagnostic.key, section.line), diagnostic)
    return result, seen


@cache
def schema(kind: Any) -> dict[str, Any]:
    """Return key -> type for a record's class."""
    hints = typing.get_type_hints(kind)
    return {f.name.rstrip("_"): hints[f.name] for f in fields(kind)}


def field_name(key: str) -> str:
    """Return the field of a key: `from` is a Python keyword, so its field is `from_`."""
    return key + "_" if key == "from" else key


def convert(kind: Any, section: Section, option: Option, hint: Any, report: Reporter) -> Any:
    """Turn an option's text into the type of its field."""
    if isinstance(hint, types.UnionType):
        (hint,) = (t for t in typing.get_args(hint) if t is not type(None))
    place = f"[{section.name}] {option.key}={option.value[:40]}"

    def number(text: str, parse: Callable[[str], tuple[Any, str]]) -> Any:
        value, rest = parse(text)
        if rest.strip(".0") and not rest.startswith("#"):
            report(option.line, f"{place}: '{text[:40]}' is not {'an integer' if parse is atoi else 'a number'};"
                                f" Darknet reads it as {value:g}")  # fmt: skip
        return value

    if hint is int:
        return number(option.value, atoi)
    if hint is float:
        return number(option.value, atof)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if option.value in choices:
            return option.value
        default = next(f.default for f in fields(kind) if f.name == option.key)
        fallback = kind.fallback.get(option.key, default)
        report(option.line, f"{place} is unknown{did_you_mean(option.value, choices)}; Darknet uses '{fallback}'")
        return fallback
    if typing.get_origin(hint) is tuple:
        element = atoi if typing.get_args(hint)[0] is int else atof
        return tuple(number(text, element) for text in option.value.split("#")[0].split(","))
    try:
        return hint.read(resolve_path(report.path, option.value))
    except DataError as e:
        raise CfgError(f"{report.path}:{option.line}: {place}: {e}") from None


def resolve_path(cfg: str, name: str) -> Path:
    """Return the path of a file named in a cfg: as given, or relative to the cfg's folder or its parent."""
    folder = Path(cfg).resolve().parent
    candidates = (Path(name), folder / name, folder.parent / name)
    return next((path for path in candidates if path.is_file()), candidates[0])


def atoi(text: str) -> tuple[int, str]:
    """Parse the longest prefix that is an integer, as C does; 0 if there is none. Return it and the rest."""
    match = re.match(r"[+-]?\d+", text)
    # values of 20 digits are refused everywhere; Python would raise ValueError for more than 4300
    return (int(match.group()[:20]), text[match.end() :]) if match else (0, text or " ")


def atof(text: str) -> tuple[float, str]:
    """Parse the longest prefix that is a number, as C does; 0 if there is none. Return it and the rest."""
    match = re.match(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    return (float(match.group()), text[match.end() :]) if match else (0.0, text or " ")
