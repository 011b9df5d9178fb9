"""What will be done: who stands where, computed from a configuration without side effects."""

from msl.plan.layout import InputSpec, Member, Place, Plan, Profile, Role, StageProfile, build, lay_out
from msl.plan.text import COLUMNS, count_bytes, headline, render, rows

__all__ = [
    "COLUMNS",
    "InputSpec",
    "Member",
    "Place",
    "Plan",
    "Profile",
    "Role",
    "StageProfile",
    "build",
    "count_bytes",
    "headline",
    "lay_out",
    "render",
    "rows",
]
