"""The exceptions a person can cause. Whatever else is raised is a defect of arcvae."""

from __future__ import annotations


class ArcvaeError(Exception):
    """A job that failed for a reason worth telling: exit code 1, no traceback.

    `what` says what is wrong and where (file, dotted key); `fix` says what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what}\n{fix}")
        self.what = what
        self.fix = fix


class InputError(ArcvaeError):
    """Unusable input, be it a flag, a preset, data or a checkpoint: exit code 2."""

    exit_code = 2


class Interrupted(ArcvaeError):  # noqa: N818 - not an error of anybody's
    """Stopped because somebody asked for it, with the work saved; `exit_code` says how."""

    def __init__(self, what: str, exit_code: int, fix: str | None = None) -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code
