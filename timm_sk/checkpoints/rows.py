"""The rows of the table of checkpoints."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = 'ImageNet-1k validation'
PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')  # of an evaluation, after resizing to the input size
_TIMM_FIELDS = (  # of a row, which timm has by the same name
    *('input_size', 'pool_size', *PREPROCESSING, 'num_classes', 'label_names', 'first_conv', 'classifier'),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of a checkpoint's file, with the hashes of this file.

    Attributes:
        kind: 'bundled' (shipped with this project, under `weights/<arch>.<tag>/`), 'hub' (a Hugging Face repository),
            'url' (a file of the makers' release) or 'manual' (a page from which the file must be downloaded by hand).
        location: Id of the hub repository, or URL; empty for 'bundled'.
        revision: Pinned commit of the hub repository, if any.
        filename: Path of the file in a hub repository.
        format: 'safetensors', 'pytorch', 'pytorch in zip', 'mxnet in zip', 'caffe', 'mindspore', 'paddle' or
            'tensorflow', whose location is that of the index: of the shards beside it, only the tensors that are used
            are downloaded, and verified by the checksums in the index.
        sha256: Hex digest of the file, if established; always for a bundled file.
        sha256_prefix: First digits of the digest, if its makers publish no more.
        content_sha1: Hex sha1 of the one file inside a zip.
        size: Bytes of the file.
        has_classifier: Whether the file includes the classifier's weights; if not, it loads only without classifier.
    """

    kind: str
    location: str = ''
    revision: str | None = None
    filename: str = 'model.safetensors'
    format: str = 'safetensors'
    sha256: str | None = None
    sha256_prefix: str | None = None
    content_sha1: str | None = None
    size: int | None = None
    has_classifier: bool = True

    @property
    def published_hash(self) -> tuple[str, str] | None:
        """Kind and digits of the published hash by which the file is verified; None if there is none."""
        if self.sha256:
            return 'sha256', self.sha256
        if self.sha256_prefix:
            return 'sha256 begins with', self.sha256_prefix
        return ('sha1 of the file inside', self.content_sha1) if self.content_sha1 else None

    @property
    def url_name(self) -> str:
        """Name of the file at a URL."""
        return PurePosixPath(urlsplit(self.location).path).name

    @property
    def is_pinned(self) -> bool:
        """Whether a full hash was published, so that a file is known to be the published one."""
        has_hash = bool(self.sha256) or len(self.content_sha1 or '') == 40
        return has_hash and self.format != 'tensorflow'  # a hash of its index is none of its shards


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: `arch.tag`.
        family: Module of `timm_sk.models` that builds the architecture.
        sources: Sources of the file, best first; none for an untrained model.
        licence: SPDX identifier of the weights' licence; None if their makers state none.
        origin: Who made the weights, and with what.
        input_size: (channels, height, width) of the evaluation.
        mean, std, interpolation, crop_pct: Preprocessing of the makers' evaluation; None if not established.
        num_classes: Number of classes.
        label_names: Names of the classes in order; None if `timm.data` has them (ImageNet).
        pool_size: (height, width) of the features before pooling, or None.
        first_conv: Path of the first convolution.
        classifier: Path of the classifier.
        trained_on: Data set of the training, of nets for special data.
        dataset: Data set of the evaluation.
        top1, top5: Accuracy in percent.
        evaluation: Who reports the accuracy, and details of the evaluation beyond the fields above.
        recipe: Training of the weights, as a command or a citation.
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
    trained_on: str | None = None
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
    def classifier_keys(self) -> tuple[str, str]:
        """Keys of the classifier's weight and bias."""
        return f'{self.classifier}.weight', f'{self.classifier}.bias'

    @property
    def has_classifier(self) -> bool:
        """Whether a source includes the classifier's weights."""
        return any(source.has_classifier for source in self.sources)

    @property
    def bundled(self) -> Source | None:
        """The source that ships with the project, if any."""
        return self.first('bundled')

    @property
    def hub_id(self) -> str | None:
        """The first Hugging Face repository among the sources, if it is in timm's layout."""
        source = self.first('hub')
        return source.location if source and source.format == 'safetensors' else None

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

        Fields that are not established are left to timm's defaults.
        """
        place = dict(url='' if self.hub_id else self.url or '', hf_hub_id=self.hub_id)
        fields = {name: getattr(self, name) for name in _TIMM_FIELDS}
        established = {key: value for key, value in fields.items() if value is not None or key not in PREPROCESSING}
        return dict(**place, **established, license=self.licence)

    def hub_config(self, **of_model: Any) -> dict[str, Any]:
        """The content of a `config.json`, which timm's `local-dir:` and `hf-hub:`, and transformers, read.

        `of_model` are fields that depend on the model, such as `num_features`. Unlike the one of timm's `save_for_hf`,
        it has no `model_args`, which the architecture implies and whose `num_classes` transformers 5 rejects, and no
        defaults for fields that are not established.
        """
        fields = dict(tag=self.tag, custom_load=False, fixed_input_size=False, crop_mode='center', **self.timm_cfg())
        cfg = {key: value for key, value in fields.items() if value is not None and key not in ('url', 'hf_hub_id')}
        labels = dict(label_names=self.label_names) if self.label_names else {}
        return dict(architecture=self.arch, num_classes=self.num_classes, **of_model, **labels, pretrained_cfg=cfg)


def untrained(name: str, *, family: str = 'sknet', **fields: Any) -> Checkpoint:
    """A row without weights, for the architecture's preprocessing."""
    return Checkpoint(name=name, family=family, licence='apache-2.0', origin='timm_sk', **fields)


def pth_release(location: str, **fields: Any) -> Source:
    """A file in PyTorch's format whose name ends with the first digits of its sha256."""
    digits = location.removesuffix('.pth').rpartition('-')[2]
    return Source(kind='url', location=location, format='pytorch', sha256_prefix=digits, **fields)


def timm_release(file: str, release: str = 'v0.1-weights') -> Source:
    """A file of timm's releases."""
    return pth_release(f'https://github.com/rwightman/pytorch-image-models/releases/download/{release}/{file}.pth')


def lucid_upload(repository: str, folder: str, sha256: str) -> Source:
    """Timm's weights as version 3 of the Lucid library publishes them, under its names."""
    return Source(kind='hub', location=f'lucid-dl/{repository}', filename=f'{folder}/model.safetensors', sha256=sha256)


def mindcv(
    name: str, path: str, *, top1: float, top5: float, mirror: str = 'download.mindspore.cn', **fields: Any
) -> Checkpoint:
    """A row of MindCV by the path of its file, whose folder is the family and whose digits are not known to be a hash.

    Accuracies are from MindCV's model cards.
    """
    location = f'https://{mirror}/toolkits/mindcv/{path}.ckpt'
    return Checkpoint(
        name=name,
        family=f'{path.partition("/")[0]}_upstreams',
        sources=(Source(kind='url', location=location, format='mindspore'),),
        licence='apache-2.0',
        origin='MindCV',
        dataset=IMAGENET,
        top1=top1,
        top5=top5,
        evaluation="MindCV's table",
        **fields,
    )
