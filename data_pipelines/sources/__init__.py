"""Where raw records come from. Each source is a frozen value with random access, a fingerprint and label names."""

from data_pipelines.sources.array_records import ArrayRecords, write_array_records
from data_pipelines.sources.detect import open_source
from data_pipelines.sources.image_folder import ImageFolder
from data_pipelines.sources.json_lines import JsonLines
from data_pipelines.sources.parquet import ParquetTable
from data_pipelines.sources.part import Captioned, Part
from data_pipelines.sources.tar_shards import TarShards
from data_pipelines.sources.tfds import TfdsSource

__all__ = [
    "ArrayRecords",
    "Captioned",
    "ImageFolder",
    "JsonLines",
    "ParquetTable",
    "Part",
    "TarShards",
    "TfdsSource",
    "open_source",
    "write_array_records",
]
