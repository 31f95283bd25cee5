"""The command's settings: from a config file, and from flags, which override it."""

import argparse
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zipjax.arguments import shown
from zipjax.positions import Positions
from zipjax.recipes import presets

RECIPES = {
    "average": presets.average,
    "permute": presets.permute,
    "git_rebasin": presets.git_rebasin,
    "zipit": presets.zipit,
    "weight_zip": presets.weight_zip,
    "mudsc": presets.mudsc,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``zipjax merge`` is asked to do; every field is a flag of the same name.

    Attributes:
      models: paths of the checkpoints to merge, two or more.
      apply: the function, ``apply_fn(params, *inputs)``: "package.module:function", or
        in a config file the function itself.
      batches: what the networks read: "package.module:function" (called without
        arguments, it returns an iterable of batches), a .npy or .npz file, or a folder
        of these.
      held_out: the same, for the comparison; None: the last fifth of the batches.
      out: the folder to write, which does not exist yet.
      template: "package.module:function" that returns the pytree of the parameters, or
        their shapes; Equinox's files need it.
      select: the part of the checkpoints that holds the parameters, such as "params";
        several, with commas or as a list, make a dictionary.
      step: the step of an Orbax manager; None: the last one.
      inputs: names of the arrays of a batch that the function reads, in its order, if
        batches are dictionaries or .npz files.
      batch_size: number of examples in a batch of an array.
      num_batches: the most batches that are read; None: all.
      recipe: how units are matched, such as "zipit".
      settings: the recipe's own settings, such as {"alpha": 0.3}.
      stop_at: where a partial zip stops: a perm or the number of a cut; None: nowhere.
      weights: interpolation weights, one per model; None: equal ones.
      carry: the number of the model whose counters and keys are kept where they differ.
      reset: whether BatchNorm statistics are estimated again; None: if there are any,
        by their names.
      repair: whether units get back their parents' statistics.
      refit: whether layers are fitted again by least squares.
      verify: whether the spec is verified on a batch.
      positions: how many positions are read for moments: "few", "all" or a number.
      memory_limit: bytes that moments may take on each device; None: no limit.
      seed: of all that is random.
      report: whether report.html is written.
      dry_run: whether to stop before anything is computed or written.
    """

    models: tuple[str, ...] = ()
    apply: Any = None
    batches: Any = None
    held_out: Any = None
    out: str | None = None
    template: Any = None
    select: str | tuple[str, ...] | None = None
    step: int | None = None
    inputs: tuple[str, ...] = ()
    batch_size: int = 128
    num_batches: int | None = None
    recipe: str = "zipit"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop_at: str | int | None = None
    weights: tuple[float, ...] | None = None
    carry: int | None = None
    reset: bool | None = None
    repair: bool = False
    refit: bool = False
    verify: bool = True
    positions: Positions = "few"
    memory_limit: int | None = None
    seed: int = 0
    report: bool = True
    dry_run: bool = False

    def make_recipe(self) -> presets.Recipe:
        """Returns the recipe with its settings.

        Raises:
          ValueError: if there is no such recipe, or it has no such settings.
        """
        if self.recipe not in RECIPES:
            known = ", ".join(RECIPES)
            raise ValueError(
                f"recipe = {self.recipe!r} is unknown: choose from {known}"
            )
        try:
            return RECIPES[self.recipe](**self.settings)
        except TypeError as error:
            raise ValueError(
                f"recipe {self.recipe!r} with the settings {dict(self.settings)}: "
                f"{str(error).partition(' ')[2]}"
            ) from error


_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_WORDS = {"true": True, "false": False, "none": None}


def read_settings(
    config: str | None, flags: Mapping[str, Any], wanted: Sequence[str]
) -> Settings:
    """Returns the settings of a config file, overridden by flags.

    Args:
      config: path of a Python file whose ``get_config()`` returns a ConfigDict of
        ml_collections or another mapping; None for flags alone.
      flags: fields that were given on the command line.
      wanted: fields that must be given.

    Raises:
      FileNotFoundError: if there is no config file.
      ValueError: listing all fields that are unknown, missing or of another kind.
    """
    fields = _config_fields(Path(config)) if config else {}
    given = {**fields, **flags}
    if isinstance(fields.get("settings"), Mapping):
        # A flag is one setting, which leaves the others as they are.
        given["settings"] = {**fields["settings"], **flags.get("settings", {})}
    faults = [
        f"there is no field {name!r}: known are {', '.join(_FIELDS)}"
        for name in given
        if name not in _FIELDS
    ]
    known = {k: _as_field(k, v) for k, v in given.items() if k in _FIELDS}
    settings = Settings(**known)
    faults += [
        f"{name} is missing: pass --{name}, or the field of --config"
        for name in wanted
        if getattr(settings, name) in (None, ())
    ]
    faults += _faults(settings)
    if "models" in wanted and len(settings.models) == 1:
        faults.append("merging needs at least two models: pass two paths or more")
    if faults:
        raise ValueError("; ".join(faults))
    return settings


def parsed_value(text: str) -> Any:
    """Returns a flag's text as a number, a truth value or None, or else as it is.

    >>> parsed_value("0.3"), parsed_value("7"), parsed_value("none"), parsed_value("fc")
    (0.3, 7, None, 'fc')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parsed_setting(text: str) -> tuple[str, Any]:
    """Returns a recipe's setting, "alpha=0.3", as its name and value.

    Raises:
      argparse.ArgumentTypeError: if there is no "=".
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: pass name=value, as alpha=0.3")
    return name, parsed_value(value)


def _config_fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no config file {str(path)!r}: check the path"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise ValueError(f"the config {str(path)!r} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    # By name, so that functions of the file can be hashed and told in the manifest.
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise ValueError(
            f"the config {str(path)!r} cannot be read: {type(error).__name__}: "
            f"{error}. Its function get_config() returns the fields"
        ) from error
    found = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(found, Mapping):
        raise ValueError(
            f"get_config() of {str(path)!r} returns {shown(found)}: return a ConfigDict"
        )
    return dict(found)


def _as_field(name: str, value: Any) -> Any:
    """Returns a field's value, a list as a tuple; texts with commas are lists."""
    if name in ("models", "inputs", "select", "weights") and value is not None:
        if isinstance(value, str):
            if name == "select" and "," not in value:
                return value
            value = [part for part in value.split(",") if part]
        return tuple(map(float, value)) if name == "weights" else tuple(value)
    return value


def _faults(settings: Settings) -> list[str]:
    """Lists what is wrong with fields by themselves."""
    faults = []
    for name in ("batch_size", "num_batches", "memory_limit"):
        value = getattr(settings, name)
        optional = _FIELDS[name].default is None
        if not (optional and value is None) and not _is_whole(value, 1):
            faults.append(f"{name} = {value!r}: pass a whole number from 1 on")
    if not _is_whole(settings.seed, 0):
        faults.append(f"seed = {settings.seed!r}: pass a whole number from 0 on")
    for name, field in _FIELDS.items():
        value = getattr(settings, name)
        flag = isinstance(field.default, bool) or (
            name == "reset" and value is not None
        )
        if flag and not isinstance(value, bool):
            faults.append(f"{name} = {value!r}: pass true or false")
    if not isinstance(settings.settings, Mapping):
        faults.append(f"settings are {shown(settings.settings)}: pass them by name")
    if settings.weights and not math.isclose(sum(settings.weights), 1, abs_tol=1e-6):
        faults.append(f"weights = {settings.weights}: their sum must be 1")
    return faults


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
