"""What all handles that change the namespace share: one command, and its answer."""

from __future__ import annotations

from nokv.client.core import Core
from nokv.client.options import Options, expect
from nokv.client.reads import ReadHandle
from nokv.types.commands import Op, Predicate
from nokv.types.results import Made, Result
from nokv.types.values import Attr


class ChangeHandle(ReadHandle):
    """Runs commands: each is applied once, or not at all."""

    async def _do(self, op: Op, predicates: tuple[Predicate, ...] = ()) -> Result:
        return await self._core.propose(op, predicates, self._options.deadline_s)

    async def _make(self, op: Op, predicates: tuple[Predicate, ...] = ()) -> Attr:
        return expect((await self._do(op, predicates)).value, Made).attr


class Part:
    """A group of methods of a client: shares its core and its options."""

    def __init__(self, core: Core, options: Options) -> None:
        self._core = core
        self._options = options

    async def _do(self, op: Op, predicates: tuple[Predicate, ...] = ()) -> Result:
        return await self._core.propose(op, predicates, self._options.deadline_s)
