"""Recipe + site -> plan: every choice made, every fault found, nothing read and nothing asked."""

from launcher.planner.make import Identity, make_plan
from launcher.planner.sweep import SweepPlan, plan_sweep

__all__ = ["Identity", "SweepPlan", "make_plan", "plan_sweep"]
