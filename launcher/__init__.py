"""swiftlaunch: one recipe, one command, a whole post-training chain on a cluster.

From Python: `launcher.submit("recipe.toml", site="mycluster")` gives a `launcher.Run`. Nothing of that is imported
before it is used: jobs import this package too, from a copy that has only what jobs need.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the import of typing
if TYPE_CHECKING:
    from launcher.api import Run as Run
    from launcher.api import StageResult as StageResult
    from launcher.api import open_run as open_run
    from launcher.api import runs as runs
    from launcher.api import submit as submit
    from launcher.errors import RunFailed as RunFailed
    from launcher.errors import SwiftlaunchError as SwiftlaunchError
    from launcher.errors import UserError as UserError

_API = ("Run", "StageResult", "open_run", "runs", "submit")
_ERRORS = ("RunFailed", "SwiftlaunchError", "UserError")


def __getattr__(name: str) -> object:
    if name in _API:
        from launcher import api

        return getattr(api, name)
    if name in _ERRORS:
        from launcher import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API, *_ERRORS])
