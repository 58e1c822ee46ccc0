"""Structured logs on standard error: one line an event, JSON or logfmt.

A line has `time` (RFC 3339, UTC), `level`, `logger`, `message`, `node`, `process`, and the fields
passed as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_QUOTED: Final = frozenset(' "=\\\t\r\n')


class _Formatter(logging.Formatter):
    def __init__(self, node: int, process: str) -> None:
        super().__init__()
        self._node = node
        self._process = process

    def _values(self, record: logging.LogRecord) -> dict[str, Any]:
        time = datetime.fromtimestamp(record.created, UTC)
        values: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": self._node,
            "process": self._process,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            values.update(fields)
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return values


class JsonFormatter(_Formatter):
    """One JSON object a line (RFC 8259)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(self._values(record), default=str, ensure_ascii=True)


class LogfmtFormatter(_Formatter):
    """`key=value` pairs, values quoted where they must be."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return " ".join(f"{key}={_logfmt(value)}" for key, value in self._values(record).items())


def _logfmt(value: object) -> str:
    text = str(value)
    if text and not _QUOTED & set(text) and text.isprintable():
        return text
    return json.dumps(text)


def configure(
    level: str, style: str, *, node: int, process: str, stream: TextIO | None = None
) -> None:
    """Send every log line of this process to `stream` (standard error) in the given style."""
    formatter = (LogfmtFormatter if style == "logfmt" else JsonFormatter)(node, process)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "botocore", "aiobotocore", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
