"""Recipe + site -> plan: every choice made, every fault found, nothing read and nothing asked."""

from launcher.planner.make import Identity, make_plan

__all__ = ["Identity", "make_plan"]
