"""What will be done: who stands where, computed from a configuration without side effects."""

from msl.plan.layout import InputSpec, Member, Place, Plan, Profile, Role, StageProfile, build, lay_out
from msl.plan.serving import serving_config
from msl.plan.steering import ChainPlan, DomainPlan, lay_chain, lay_domain
from msl.plan.text import COLUMNS, count_bytes, headline, path_lines, render, rows

__all__ = [
    "COLUMNS",
    "ChainPlan",
    "DomainPlan",
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
    "lay_chain",
    "lay_domain",
    "lay_out",
    "path_lines",
    "render",
    "rows",
    "serving_config",
]
