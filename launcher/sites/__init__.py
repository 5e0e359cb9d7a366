"""Sites: a computing centre, or this machine, as data. TOML in, one frozen Site out."""

from launcher.sites.choose import Choice, SiteFile, choose_site, site_files
from launcher.sites.imports import import_command, versions
from launcher.sites.locks import COMPLETE, Lock, lacks, lock_hash, lock_hashes, lock_path, read_lock, usable_python
from launcher.sites.read import load_site
from launcher.sites.site import (
    IMPORTS,
    ROLES,
    STAGES,
    Network,
    Node,
    Partition,
    Price,
    Quirks,
    ResourceDefaults,
    Site,
    SiteEnvironment,
    environment_folder,
    resolve_environment,
)

__all__ = [
    "COMPLETE",
    "IMPORTS",
    "ROLES",
    "STAGES",
    "Choice",
    "Lock",
    "Network",
    "Node",
    "Partition",
    "Price",
    "Quirks",
    "ResourceDefaults",
    "Site",
    "SiteEnvironment",
    "SiteFile",
    "choose_site",
    "environment_folder",
    "import_command",
    "lacks",
    "load_site",
    "lock_hash",
    "lock_hashes",
    "lock_path",
    "read_lock",
    "resolve_environment",
    "site_files",
    "usable_python",
    "versions",
]
