"""Loading weights into networks: which tensors of a file belong to the network, and whether they fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from fewstep.engine.export import check_finite
from fewstep.errors import FewstepError, nearest
from fewstep_trellis.models.arguments import Rebuildable
from fewstep_trellis.weightfiles import State, dotted

# Words in the names of a file's networks. Averages come first, since one samples with them; OTHERS are the last choice.
AVERAGED = {"ema", "avg", "average", "averaged", "swa"}
TRAINED = {"student", "generator", "g"}
OTHERS = {"teacher", "critic", "discriminator", "d", "fake", "real", "frozen", "reference", "pretrained"}
COUNTERS = {"n_averaged"}
OTHERS |= {"optimizer", "optim", "opt", "grad", "grads", "exp", "momentum"}


def select(state: Mapping[str, Tensor], wanted: Iterable[str], source: str) -> State:
    """The tensors of one network under its own names, whatever wraps it and whatever else the file holds.

    A prefix is what precedes the network's own names (``module.``, ``state_dict/model.diffusion_model.``). Inner parts
    that none of these names has (``_checkpoint_wrapped_module``) are dropped. If several networks in the file have all
    names, an average (EMA) is preferred, then a student or generator, then the first in the file; a teacher, a critic
    or a discriminator comes last. A warning says what was chosen or removed.

    Args:
        state: as ``read_tensors`` gives it.
        wanted: names that the network has.
        source: where the tensors come from, for messages.

    Raises:
        FewstepError: for two tensors of one name.
    """
    wanted = set(wanted)
    parts = {part for key in wanted for part in key.split(".")}
    found: dict[str, dict[str, str]] = {}  # by prefix: the name in the file by the network's own
    twice: dict[str, str] = {}
    for name in state:
        for prefix, key in _places(dotted(name), wanted, parts):
            names = found.setdefault(prefix, {})
            exact = dotted(name) == prefix + key
            if not exact and key in names and dotted(names[key]) != prefix + key:
                twice[prefix] = f"{names[key]} and {name} are both {key!r} of the network"
            if exact or key not in names:
                names[key] = name
    best = max(map(len, found.values()), default=0)
    if 2 * best < len(wanted):
        return {dotted(name): value for name, value in state.items()}
    whole = sorted((prefix for prefix, names in found.items() if len(names) == best), key=_preference)
    prefix, names = whole[0], found[whole[0]]
    if prefix in twice:
        raise FewstepError(f"{source}: {twice[prefix]}; accepted: one tensor of each name")
    for line in _notes(source, state, names, [one.removesuffix(".") or "." for one in whole], prefix):
        warnings.warn(line, stacklevel=3)
    dicts = {name.rpartition("/")[0] for name in names.values()}
    own = {name: key for key, name in names.items()}
    rest = [n for n in state if n.rpartition("/")[0] in dicts and dotted(n).startswith(prefix) and n not in COUNTERS]
    return {own.get(name, dotted(name).removeprefix(prefix)): state[name] for name in rest}


def _places(name: str, wanted: set[str], parts: set[str]) -> Iterator[tuple[str, str]]:
    """(prefix, network's own name) for each way to read a name."""
    found = name.split(".")
    for at, first in enumerate(found):
        key = ".".join([*(part for part in found[at:-1] if part in parts), found[-1]])
        if key in wanted and key.split(".")[0] == first:
            yield "".join(f"{part}." for part in found[:at]), key


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _preference(prefix: str) -> tuple[bool, bool, bool]:
    words = _words(prefix)
    return bool(words & OTHERS), not words & AVERAGED, not words & TRAINED


def _notes(
    source: str, state: Mapping[str, Tensor], names: Mapping[str, str], whole: Sequence[str], prefix: str
) -> Iterator[str]:
    """What the user should know about a choice: ``names`` of the file, below ``prefix``, the first of ``whole``."""
    dicts = {dotted(name[: name.rfind("/") + 1]) for name in names.values()}
    removed = prefix.removeprefix(min(dicts, key=len))
    if len(whole) > 1:
        others = " or ".join(f"{source}:{one}" for one in whole[1:])
        yield f"{source}: took {whole[0]!r} of {', '.join(whole)}; for another: {others}"
    elif removed:
        yield f"{source}: removed the prefix {removed!r} from all {len(names)} keys"
    inner = {part for name in names.values() for part in dotted(name).removeprefix(prefix).split(".")}
    if left_out := inner - {part for key in names for part in key.split(".")}:
        yield f"{source}: left {', '.join(sorted(left_out))} out of the keys"
    if not _words(prefix) & AVERAGED:
        taken = set(names.values())
        tops = {
            part for n, v in state.items() if n not in taken and v.numel() > 1 for part in dotted(n).split(".")[:-1]
        }
        for average in sorted(part for part in tops if _words(part) & AVERAGED and not _words(part) & OTHERS):
            yield f"{source}: {average!r} was not taken: it lacks some of the network's keys"


def _some(names: Sequence[str], accepted: Iterable[str] = (), limit: int = 8) -> str:
    """The first names, each with the nearest of ``accepted`` where one is near."""
    hints = [nearest(name, accepted, cutoff=0.8) for name in names[:limit]]
    shown = [name + (f" (did you mean {hint!r}?)" if hint else "") for name, hint in zip(names, hints, strict=False)]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Why ``state`` does not fit ``own``, as clauses of a message: missing or unknown keys, wrong shapes or kinds."""
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    both = [k for k in own if k in state]
    shapes = [
        f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}" for k in both if state[k].shape != own[k].shape
    ]
    numbers = [f"{k} {str(state[k].dtype).removeprefix('torch.')}" for k in both if not _same_kind(own[k], state[k])]
    return listing(missing, extra, shapes) + ([f"{len(numbers)} no real numbers: {_some(numbers)}"] if numbers else [])


def _same_kind(own: Tensor, given: Tensor) -> bool:
    return given.is_floating_point() or not (own.is_floating_point() or given.is_complex())


def listing(missing: Sequence[str], extra: Sequence[str], shapes: Sequence[str]) -> list[str]:
    """The keys that do not fit, as clauses (unknown ones with the nearest missing one); empty if all fit."""
    found = {"missing": (missing, ()), "unknown": (extra, missing), "wrong shape": (shapes, ())}
    return [f"{len(names)} {what}: {_some(names, near)}" for what, (names, near) in found.items() if names]


def fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a module, cast to the dtypes of its own.

    Args:
        model: may lie on the meta device; afterwards it lies where the tensors do.
        state: tensors by name, as ``read_tensors`` gives them.
        source: where the tensors come from, for the messages.

    Raises:
        FewstepError: keys are missing, unknown or wrongly shaped, all of them in one message; or values that are not
            finite, or all zero.
    """
    own = model.state_dict()
    computed = model.computed if isinstance(model, Rebuildable) else ()
    left = {key: value for key, value in select(state, own, source).items() if key not in computed}
    if found := misfits(own, left):
        raise FewstepError(f"{source} does not fit {type(model).__name__}: {'; '.join(found)}")
    # Copies: tensors read from a file may be a view of it, and the file may change later.
    cast = {k: v.to(own[k].dtype, copy=True) for k, v in left.items()}
    check_finite(cast, source)
    model.load_state_dict(cast, assign=True)
