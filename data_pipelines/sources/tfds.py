"""TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow.

Prepare once, anywhere: `tfds build NAME --file_format=array_record`. Images stay encoded until the pipeline decodes
them.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.schema import Class, Field, Media, Number, Schema, Text
from data_pipelines.sources.files import digest, missing_package
from data_pipelines.sources.peeking import texts
from mmjax.core.errors import DataError, ExitCode


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """name: `coco_captions`, `coco_captions/2014:1.1.0`, or the folder of a prepared version (with dataset_info.json).
    split: as in tfds, slices too (`train[:90%]`). data_dir: None takes $TFDS_DATA_DIR or ~/tensorflow_datasets.
    schema: None takes every image, text, class and whole number at the top of a record."""

    name: str
    split: str = "train"
    data_dir: str | None = None
    schema: Schema | None = None

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.declared.read(self.row(index))

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self.declared.only(fields).read(self.row(index))

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def row(self, index: int) -> Mapping[str, Any]:
        """The stored columns, before the schema; classes by name."""
        index = range(len(self))[index]
        try:
            record = self._data[index]
        except (RuntimeError, ValueError) as error:
            told = f"{self.locate(index)} is damaged or cut off ({error})"
            raise DataError(
                f"{told}; prepare {self.name} again: tfds build {self.name} --file_format=array_record"
            ) from None
        return {name: self._by_name(name, value) for name, value in record.items()}

    def _by_name(self, column: str, value: Any) -> Any:
        feature = self._builder.info.features[column]
        return feature.int2str(int(value)) if type(feature).__name__ == "ClassLabel" and int(value) >= 0 else value

    def locate(self, index: int) -> str:
        """Shard and record inside it."""
        for file in self._files:
            if index < file.take:
                return f"{pathlib.Path(file.filename).name}, record {file.skip + index}"
            index -= file.take
        raise IndexError(index)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Name with version, split, sizes of the shards and the schema."""
        info = self._builder.info
        sizes = digest(f"{pathlib.Path(f.filename).name}:{f.skip}:{f.take}:{f.examples_in_shard}" for f in self._files)
        return {
            "source": "TfdsSource",
            "name": info.full_name,
            "split": self.split,
            "shards": sizes,
            "schema": str(self.declared),
        }

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema, with the class names of the data set in its own order."""
        features = self._builder.info.features
        schema = self.schema or Schema(tuple(f for name in features for f in _field(name, features[name])))
        if not schema.fields:
            raise DataError(
                f"{self.name} has no image, text or class at the top of its records; it has {', '.join(features)}"
            )
        schema.check_columns(list(features), self.name)
        return Schema(tuple(self._with_names(field) for field in schema.fields))

    def _with_names(self, field: Field) -> Field:
        features = self._builder.info.features
        found = [features[place] for place in field.places if place in features]
        named = isinstance(field.kind, Class) and not field.kind.names
        if not named or not found or type(found[0]).__name__ != "ClassLabel":
            return field
        return dataclasses.replace(field, kind=Class(tuple(found[0].names)))

    @functools.cached_property
    def _builder(self) -> Any:
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise missing_package("tensorflow-datasets", "tensorflow-datasets", "reading TFDS data sets") from None
        folder = pathlib.Path(self.name).expanduser()
        try:
            if (folder / "dataset_info.json").is_file():
                return tfds.builder_from_directory(folder)
            return tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record", try_gcs=False)
        except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
            told = str(error).strip().split("\n")[0]
            raise DataError(f"there is no TFDS data set {self.name!r} ({told})", code=ExitCode.NO_INPUT) from None

    @functools.cached_property
    def _files(self) -> list[Any]:
        info = self._builder.info
        base = self.split.partition("[")[0]
        if base not in info.splits:
            told = f"it has {', '.join(info.splits)}" if info.splits else "it is not prepared"
            build = f"tfds build {self.name} --file_format=array_record"
            raise DataError(
                f"{self.name} has no split {base!r}: {told}; prepare it with: {build}", code=ExitCode.NO_INPUT
            )
        return list(info.splits[self.split].file_instructions)

    @functools.cached_property
    def _data(self) -> Any:
        import tensorflow_datasets as tfds

        total = sum(file.take for file in self._files)
        features = self._builder.info.features
        encoded = {name: tfds.decode.SkipDecoding() for name in features if type(features[name]).__name__ == "Image"}
        data = self._builder.as_data_source(split=self.split, decoders=encoded)
        if len(data) != total or not total:
            raise DataError(f"{self.name}, split {self.split}: {len(data)} records where {total} were expected")
        return data


def _field(name: str, feature: Any) -> list[Field]:
    kind = {"Image": Media("image"), "Text": Text(), "ClassLabel": Class(tuple(getattr(feature, "names", None) or ()))}
    if type(feature).__name__ in kind:
        return [Field(name, kind[type(feature).__name__])]
    whole = type(feature).__name__ in ("Scalar", "Tensor") and feature.shape == () and feature.np_dtype.kind in "iu"
    return [Field(name, Number(whole=True))] if whole else []
