"""Facts as data: what to write (:class:`EditRequest`), what to ask afterwards (:class:`Probe`).

Everything here is plain, immutable and free of torch. A fact is validated when it is made, so an
editor never meets a malformed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import RequestError, did_you_mean

__all__ = ["KINDS", "EditCase", "EditRequest", "Probe", "as_requests"]

#: What a probe can be about (design 9.4), in the order in which tables list them.
KINDS = (
    "efficacy",
    "paraphrase",
    "neighborhood",
    "attribute",
    "locality",
    "upstream",
    "holdout",
)


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One fact to write into a model.

    Args:
        prompt: with a subject, a template with exactly one ``{}`` where the subject goes; without
            a subject, the literal prompt.
        target_new: what the model should say next (without leading space; one is added).
        subject: the entity the fact is about; needed by locate-then-edit editors.
        target_true: what the model said, or what is true; used as foil in probes.

    Raises:
        RequestError: for an empty prompt, target or subject, or a wrong number of ``{}``.

    Example:
        >>> req = EditRequest(prompt="The capital of {} is", subject="France", target_new="Rome")
        >>> req.text
        'The capital of France is'
    """

    prompt: str
    target_new: str
    subject: str | None = None
    target_true: str | None = None

    def __post_init__(self) -> None:
        _require_text("prompt", self.prompt)
        _require_text("target_new", self.target_new)
        if self.target_true is not None:
            _require_text("target_true", self.target_true)
        if self.subject is None:
            return
        _require_text("subject", self.subject)
        slots = self.prompt.count("{}")
        if slots != 1:
            raise RequestError(
                f"prompt={self.prompt!r} has {slots} slots '{{}}' but subject={self.subject!r} "
                "needs exactly one: put '{}' where the subject stands, or use "
                "EditRequest.from_text(text, subject=...)."
            )

    @classmethod
    def from_text(cls, text: str, *, subject: str, target_new: str, **fields: Any) -> EditRequest:
        """Make a request from a sentence that contains its subject; the first occurrence counts.

        Raises:
            RequestError: if the subject does not occur in the text.
        """
        if not subject or subject not in text:
            raise RequestError(
                f"subject={subject!r} does not occur in {text!r}: name a piece of the sentence, "
                "spelled as it stands there."
            )
        prompt = text.replace(subject, "{}", 1)
        return cls(prompt=prompt, subject=subject, target_new=target_new, **fields)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        if self.subject is None:
            return self.prompt
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def subject_start(self) -> int | None:
        """Character index of the subject in :attr:`text`, None without a subject."""
        return None if self.subject is None else self.prompt.index("{}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields, None left out."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A question: a prompt, the completion that should win and the one that should lose.

    Args:
        prompt: literal text, ending right before the completion.
        target: the completion that should win.
        foil: the completion that should lose; None for exact match only.
        kind: one of :data:`KINDS`.

    Raises:
        RequestError: for empty text or an unknown kind.
    """

    prompt: str
    target: str
    foil: str | None = None
    kind: str = "efficacy"

    def __post_init__(self) -> None:
        _require_text("prompt", self.prompt)
        _require_text("target", self.target)
        if self.foil is not None:
            _require_text("foil", self.foil)
        if self.kind not in KINDS:
            raise RequestError(f"kind={self.kind!r} is unknown." + did_you_mean(self.kind, KINDS))


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """A request with the probes that judge it.

    Args:
        request: the fact to write.
        probes: questions of every kind; empty means the request's own prompt alone.
        case_id: identifies the case in tables and run records.
        tags: free data about the case, such as ``{"known": True, "relation": "capital"}``.
    """

    request: EditRequest
    probes: tuple[Probe, ...] = ()
    case_id: int | str = 0
    tags: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(self.probes))

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The probes, with one of kind ``efficacy`` for the request itself put first if missing."""
        if any(p.kind == "efficacy" for p in self.probes):
            return self.probes
        req = self.request
        own = Probe(prompt=req.text, target=req.target_new, foil=req.target_true)
        return (own, *self.probes)


def as_requests(items: Any) -> list[EditRequest]:
    """Accept a request, a case, or a sequence of either, and return a list of requests.

    Raises:
        RequestError: if the list is empty or holds anything else.
    """
    if isinstance(items, EditRequest | EditCase):
        items = [items]
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        raise RequestError(
            f"expected an EditRequest, an EditCase or a list of them, not {type(items).__name__}."
        )
    requests = [it.request if isinstance(it, EditCase) else it for it in items]
    for req in requests:
        if not isinstance(req, EditRequest):
            raise RequestError(
                f"expected EditRequest or EditCase, found {type(req).__name__} ({req!r}); "
                "make one with EditRequest(prompt=..., subject=..., target_new=...)."
            )
    if not requests:
        raise RequestError("the list of requests is empty: give at least one EditRequest.")
    return requests


def request_conflicts(requests: Sequence[EditRequest]) -> list[tuple[int, int]]:
    """Pairs (i, j) of requests with equal prompt and subject but different targets."""
    seen: dict[tuple[str, str | None], int] = {}
    pairs = []
    for j, req in enumerate(requests):
        i = seen.setdefault((req.prompt, req.subject), j)
        if i != j and requests[i].target_new != req.target_new:
            pairs.append((i, j))
    return pairs


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name}={value!r} must be a non-empty text.")
