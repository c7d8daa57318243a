"""The config of a local Spark for tests."""

from data.corpus.config import EngineConfig

SPARK = EngineConfig(kind="spark", spark_master="local[2]", memory_limit="2GB")
