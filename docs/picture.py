"""Draw a run as docs/run.svg, the picture in the README: `python docs/picture.py RUN`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher import watch
from launcher.registry import Registry, registry_path
from launcher.scheduler import default_state_dir
from launcher.view.plan_table import show_plan
from launcher.view.summary import show_summary


def main() -> None:
    row = Registry(registry_path(default_state_dir())).find(sys.argv[1])
    plan = watch.load_plan(row.run_dir)
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=132, force_terminal=True, file=nowhere)
        console.print(Text("$ swiftlaunch submit recipes/sft-smollm2-cpu.toml --site local --follow", style="bold"))
        show_plan(plan, console, why_site="--site")
        show_summary(watch.refresh(row.run_dir), plan, console)
        home = str(Path.home())
        picture = console.export_svg(title="swiftlaunch").replace(home, "~")
        picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # a picture fetches nothing
    (Path(__file__).parent / "run.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
