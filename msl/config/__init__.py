"""What was asked for: the frozen configuration of a job, and how it is read and checked."""

from msl.config.load import from_yaml, load_config, to_yaml
from msl.config.schema import (
    ChainConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    DataConfig,
    Factory,
    HostConfig,
    ModelConfig,
    RouterConfig,
    ScheduleConfig,
    SplitConfig,
    SrConfig,
    TestbedConfig,
    TimeoutConfig,
    TrainConfig,
)
from msl.config.serving import ServeConfig
from msl.config.steering import SteeringConfig

__all__ = [
    "ChainConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "Factory",
    "HostConfig",
    "ModelConfig",
    "RouterConfig",
    "ScheduleConfig",
    "ServeConfig",
    "SplitConfig",
    "SrConfig",
    "SteeringConfig",
    "TestbedConfig",
    "TimeoutConfig",
    "TrainConfig",
    "from_yaml",
    "load_config",
    "to_yaml",
]
