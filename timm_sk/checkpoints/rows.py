"""What a row of the table of checkpoints says."""

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = 'ImageNet-1k validation'


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that a checkpoint's file comes from. Hashes are those of this source's file.

    Attributes:
        kind: 'bundled' (shipped with this project, under `weights/<arch>.<tag>/`), 'hub' (a Hugging Face repository),
            'url' (a file of the makers' release) or 'manual' (a page from which only a person can fetch the file).
        location: The hub repository's id, or the URL; None for 'bundled'.
        revision: The hub repository's pinned commit; None where none is pinned.
        filename: The file's path in a hub repository.
        format: 'safetensors', 'pytorch', 'pytorch in zip', 'mxnet in zip', 'caffe' or 'mindspore'.
        sha256: Hex digest of the file, where established; a bundled file always has one.
        sha256_prefix: First digits of the digest, where its makers publish no more.
        content_sha1: Hex sha1 of the one file inside, where a zip archive wraps it.
        size: Bytes of the file.
        has_classifier: Whether the classifier's weights are in the file; one without serves only models without it.
    """

    kind: str
    location: str | None = None
    revision: str | None = None
    filename: str = 'model.safetensors'
    format: str = 'safetensors'
    sha256: str | None = None
    sha256_prefix: str | None = None
    content_sha1: str | None = None
    size: int | None = None
    has_classifier: bool = True


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: `arch.tag`.
        family: The module of `timm_sk.models` that builds the architecture.
        sources: Where the file comes from, best first; empty for a tag that names an untrained model.
        licence: SPDX identifier of the weights' licence; None where their makers state none.
        origin: Who made the weights, and with what.
        input_size: (channels, height, width) that the metrics were measured at.
        mean, std, interpolation, crop_pct: Preprocessing, as the makers evaluate; None where not established.
        num_classes: Classes of the classifier.
        label_names: Their names in order; None where `timm.data` knows them (ImageNet).
        pool_size: (height, width) of the features that reach the classifier, or None.
        first_conv: Path of the convolution that sees the picture's channels.
        classifier: Path of the classifier.
        dataset: What the metrics were measured on.
        top1, top5: Accuracy in percent.
        evaluation: How they were obtained, beyond the fields above, and who reports them.
        recipe: How the weights were trained, as a command or a citation.
    """

    name: str
    family: str
    sources: tuple[Source, ...] = ()
    licence: str | None = None
    origin: str | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] | None = IMAGENET_MEAN
    std: tuple[float, float, float] | None = IMAGENET_STD
    interpolation: str | None = 'bicubic'
    crop_pct: float | None = 0.875
    num_classes: int = 1000
    label_names: tuple[str, ...] | None = None
    pool_size: tuple[int, int] | None = (7, 7)
    first_conv: str = 'conv1'
    classifier: str = 'fc'
    dataset: str | None = None
    top1: float | None = None
    top5: float | None = None
    evaluation: str | None = None
    recipe: str | None = None

    @property
    def arch(self) -> str:
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        return self.name.partition('.')[2]

    @property
    def bundled(self) -> Source | None:
        """The source that ships with the project, if there is one."""
        return self.first('bundled')

    @property
    def hub_id(self) -> str | None:
        """The first Hugging Face repository among the sources, in timm's layout."""
        source = self.first('hub')
        return source.location if source else None

    @property
    def url(self) -> str | None:
        """The first release file among the sources."""
        source = self.first('url')
        return source.location if source else None

    def first(self, kind: str) -> Source | None:
        """The first source of a kind."""
        return next((source for source in self.sources if source.kind == kind), None)

    def timm_cfg(self) -> dict[str, Any]:
        """The row as fields of `timm.models.PretrainedCfg`, without the path of a bundled file.

        Facts that are not established are left to timm's defaults.
        """
        fields = dict(
            url='' if self.hub_id else self.url or '',
            hf_hub_id=self.hub_id,
            input_size=self.input_size,
            pool_size=self.pool_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            num_classes=self.num_classes,
            label_names=self.label_names,
            first_conv=self.first_conv,
            classifier=self.classifier,
            license=self.licence,
        )
        established = ('mean', 'std', 'interpolation', 'crop_pct')
        return {key: value for key, value in fields.items() if value is not None or key not in established}


def untrained(name: str, *, family: str = 'sknet', **fields: Any) -> Checkpoint:
    """A row without weights, which gives the architecture its preprocessing for ImageNet."""
    return Checkpoint(name=name, family=family, licence='apache-2.0', origin='timm_sk', **fields)


def timm_release(file: str, release: str = 'v0.1-weights') -> Source:
    """A file of timm's releases, named after the first digits of its sha256."""
    return Source(
        kind='url',
        location=f'https://github.com/rwightman/pytorch-image-models/releases/download/{release}/{file}.pth',
        format='pytorch',
        sha256_prefix=file.rpartition('-')[2],
    )


def lucid_upload(repository: str, folder: str, sha256: str) -> Source:
    """Timm's weights as version 3 of the Lucid library publishes them, under its names."""
    return Source(kind='hub', location=f'lucid-dl/{repository}', filename=f'{folder}/model.safetensors', sha256=sha256)


def mindcv_release(path: str, *, mirror: str = 'download.mindspore.cn') -> Source:
    """A checkpoint of MindCV's releases; the digits in its name are not known to be of any hash."""
    return Source(kind='url', location=f'https://{mirror}/toolkits/mindcv/{path}.ckpt', format='mindspore')
