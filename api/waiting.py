"""Long polls: look, and look again after each change, until there is something to say or the time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from api.watch import Watch

Found = TypeVar("Found")


async def look_until(
    watch: Watch, object_id: str, look: Callable[[], Found], is_enough: Callable[[Found], bool], seconds: float
) -> Found:
    """What `look` finds once `is_enough` says so, or after `seconds`, or when the process stops. `look` may block."""
    found = await run_in_threadpool(look)
    if not seconds or is_enough(found):
        return found
    clock = asyncio.get_running_loop()
    deadline = clock.time() + seconds
    async with watch.on(object_id) as feed:
        while True:
            turn = feed.turn
            found = await run_in_threadpool(look)
            remaining = deadline - clock.time()
            if is_enough(found) or remaining <= 0 or watch.closing:
                return found
            await feed.wait(turn, remaining)
