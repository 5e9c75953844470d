"""How published: a row of the table, or an exported folder, as a repository of a hub, in one commit and under a tag.

A release is safe to repeat. What the repository has already is not sent again; the commit is made wholly or not at all;
the tag is set last, once everything was read back and compared, and never moves.

A row's tag is `v<version of timm_sk>`, since the table that says which weights these are is part of that version: to
change what a version published takes a new one. Fine-tuned weights follow no version of timm_sk, which the person who
trained them cannot raise: their tags count the releases of their own repository, v1, v2, …, and other files than the
last release had are the next one.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from .. import __version__
from ..checkpoints import CHECKPOINTS
from ..checkpoints.lookup import find_row
from ..errors import ReleaseError, TimmSkError, UnpublishableError
from ..pretrained import sha256_of
from .hub_folder import CARD, EXPORTED, GOLDEN, GOLDEN_TOLERANCE, WEIGHTS, read_golden
from .release import build_folder, refusal, require_exported, require_publishable

TAG = f'v{__version__}'


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a release would do.

    Attributes:
        repo_id: The repository.
        exists: Whether there is one.
        head: The commit that was compared: the tag's if it is set, else the newest; None without a repository.
        tag: The release's.
        changes: 'added', 'changed' or 'equal' by the path of each file of ours; other files there are left alone.
        tagged: Whether the tag is set already.
    """

    repo_id: str
    exists: bool
    head: str | None
    tag: str
    changes: dict[str, str]
    tagged: bool

    @property
    def to_send(self) -> list[str]:
        return [path for path, change in self.changes.items() if change != 'equal']

    @property
    def done(self) -> bool:
        return self.tagged and not self.to_send


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one checkpoint: 'published', 'tagged', 'unchanged', 'planned', 'refused' or 'failed', and why."""

    name: str
    state: str
    detail: str


def publish(
    name: str,
    org: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    show: Callable[[Plan], None] = lambda plan: None,
) -> Outcome:
    """Bring one checkpoint's repository, `org/arch.tag`, to what this version publishes.

    Args:
        name: `arch.tag`.
        org: Organisation or user of the hub.
        private: Make a new repository private; one that is public is refused, and none is ever changed.
        dry_run: Only find out what would change.
        api: The hub's client; None for one with the environment's endpoint and token.
        show: Called with the plan before anything is sent.

    Raises:
        UnknownModelError: If the table has no such row.
        NoWeightsError: If the row names an untrained model.
        UnpublishableError: If the row may not be published, or this version has published something else.
        ReleaseError: If the hub fails, or does not hold what was sent.
    """
    row, client = find_row(name), api or HfApi()
    require_publishable(row)
    repo_id = f'{org}/{row.name}'
    with tempfile.TemporaryDirectory(prefix='timm_sk-') as scratch:
        folder = Path(scratch) / 'folder'
        folder.mkdir()
        build_folder(row, folder, repo_id=repo_id)
        with hub_errors(repo_id):
            return _release(client, row.name, repo_id, folder, tag=TAG, private=private, dry_run=dry_run, show=show)


def publish_folder(
    exported: Path,
    org: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    show: Callable[[Plan], None] = lambda plan: None,
) -> Outcome:
    """Bring the repository `org/arch.tag` to what an exported folder holds, once that was checked.

    Only the files of an export are sent, not what else lies there; its card's examples name the repository then.

    Args:
        exported: What `timm-sk finetune` or `timm-sk weights export` wrote.
        org: Organisation or user of the hub.
        private: As for `publish`.
        dry_run: As for `publish`.
        api: As for `publish`.
        show: As for `publish`.

    Raises:
        UnpublishableError: If the folder lacks something, states no licence, or does not load as the model it was.
        ReleaseError: If the hub fails, or does not hold what was sent.
    """
    name, client = require_exported(exported), api or HfApi()
    repo_id = f'{org}/{name}'
    with tempfile.TemporaryDirectory(prefix='timm_sk-') as scratch:
        folder = Path(scratch)
        for file in filter(Path.is_file, (exported / path for path in EXPORTED)):
            shutil.copyfile(file, folder / file.name)
        card = (folder / CARD).read_text(encoding='utf-8')
        (folder / CARD).write_text(card.replace(f'ORG/{name}', repo_id), encoding='utf-8')
        with hub_errors(repo_id):
            return _release(client, name, repo_id, folder, tag=None, private=private, dry_run=dry_run, show=show)


def _release(
    api: HfApi,
    name: str,
    repo_id: str,
    folder: Path,
    *,
    tag: str | None,
    private: bool,
    dry_run: bool,
    show: Callable[[Plan], None],
) -> Outcome:
    plan = make_plan(api, repo_id, folder, tag=tag, private=private)
    show(plan)
    if plan.tagged and plan.to_send:
        raise UnpublishableError(
            f'{repo_id} has published {plan.tag} with other files ({", ".join(plan.to_send)}), '
            "and a version never changes: raise timm_sk's version."
        )
    if plan.done:
        return Outcome(name=name, state='unchanged', detail=f'{repo_id} is at {plan.tag}: nothing to do')
    to_send = f'{len(plan.to_send)} files'
    if dry_run:
        return Outcome(name=name, state='planned', detail=f'{repo_id}: {to_send} to send, tag {plan.tag}')
    commit = plan.head
    if plan.to_send:
        commit = _commit(api, plan, folder, private=private)
    with tempfile.TemporaryDirectory(prefix='timm_sk-') as scratch:
        _read_back(api, plan, commit, folder, Path(scratch))
    api.create_tag(repo_id, tag=plan.tag, revision=commit)
    state = 'published' if plan.to_send else 'tagged'
    return Outcome(name=name, state=state, detail=f'{repo_id} at {plan.tag}: {to_send} sent, all read back')


def publish_all(org: str, **options: Any) -> Iterator[Outcome]:
    """Publish every row that may be, and say of others with weights why not; what fails does not stop the rest.

    Args:
        org: Organisation or user of the hub.
        **options: As for `publish`.
    """
    for row in filter(lambda row: row.sources, CHECKPOINTS.values()):
        if reason := refusal(row):
            yield Outcome(name=row.name, state='refused', detail=reason)
            continue
        try:
            yield publish(row.name, org, **options)
        except Exception as error:  # whatever is wrong with one checkpoint is not wrong with the next
            yield Outcome(name=row.name, state='failed', detail=f'{type(error).__name__}: {error}')


def make_plan(api: HfApi, repo_id: str, folder: Path, *, tag: str | None, private: bool = False) -> Plan:
    """Compare a folder with a repository; nothing is written there.

    Goldens of the same weights that differ by rounding only, since another machine computed them, are taken over from
    the repository into the folder.

    Args:
        api: The hub's client.
        repo_id: The repository.
        folder: What it shall hold.
        tag: The release's; None for a number: that of the last release if it has these files, else the next.
        private: Whether it shall be private.

    Raises:
        UnpublishableError: If a private repository is asked for and it is public.
    """
    try:
        info = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        changes = dict.fromkeys(_paths(folder), 'added')
        return Plan(repo_id=repo_id, exists=False, head=None, tag=tag or 'v1', changes=changes, tagged=False)
    if private and not info.private:
        raise UnpublishableError(f'{repo_id} is public already: publish without --private, or make it private first.')
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    number = max((int(name[1:]) for name in tags if re.fullmatch(r'v\d+', name)), default=0)
    wanted = tag or f'v{number}'
    if wanted in tags:  # a tag never moves, so what it names is what counts
        plan = _compared(api, repo_id, tags[wanted], folder, tag=wanted, tagged=True)
        if tag or plan.done:
            return plan
    return _compared(api, repo_id, info.sha, folder, tag=tag or f'v{number + 1}', tagged=False)


def _compared(api: HfApi, repo_id: str, commit: str | None, folder: Path, *, tag: str, tagged: bool) -> Plan:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    changes = {path: _change(folder / path, there.get(path)) for path in _paths(folder)}
    if changes[GOLDEN] == 'changed' and changes[WEIGHTS] == 'equal' and _adopt_golden(api, repo_id, commit, folder):
        changes[GOLDEN] = 'equal'
    return Plan(repo_id=repo_id, exists=True, head=commit, tag=tag, changes=changes, tagged=tagged)


def _paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def _change(path: Path, there: RepoFile | None) -> str:
    if there is None:
        return 'added'
    same = there.lfs.sha256 == sha256_of(path) if there.lfs else there.blob_id == _git_blob(path.read_bytes())
    return 'equal' if same else 'changed'


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def _adopt_golden(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix='timm_sk-') as scratch:
        published = Path(api.hf_hub_download(repo_id, GOLDEN, revision=revision, local_dir=scratch))
        theirs, ours = read_golden(published), read_golden(folder / GOLDEN)
        if not torch.equal(theirs['inputs'], ours['inputs']) or theirs['logits'].shape != ours['logits'].shape:
            return False
        difference = (theirs['logits'] - ours['logits']).abs().max()
        same = bool(difference <= GOLDEN_TOLERANCE * ours['logits'].abs().max())
        if same:
            shutil.copyfile(published, folder / GOLDEN)
        return same


def _commit(api: HfApi, plan: Plan, folder: Path, *, private: bool) -> str:
    """Send what differs in one commit on top of the one that the plan saw; returns it."""
    head = plan.head
    if not plan.exists:
        api.create_repo(plan.repo_id, private=private)
        head = api.repo_info(plan.repo_id).sha
    operations = [CommitOperationAdd(path, folder / path) for path in plan.to_send]
    message = f'{plan.repo_id.partition("/")[2]} by timm_sk {__version__}'
    return api.create_commit(plan.repo_id, operations, commit_message=message, parent_commit=head).oid


def _read_back(api: HfApi, plan: Plan, revision: str | None, folder: Path, scratch: Path) -> None:
    for name in _paths(folder):
        read = api.hf_hub_download(plan.repo_id, name, revision=revision, local_dir=scratch)
        if sha256_of(Path(read)) != sha256_of(folder / name):
            raise ReleaseError(
                f'{plan.repo_id} gives another {name} back than was sent: {plan.tag} was not set. '
                'Publish again; if that does not help, delete the file there first.'
            )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises, of many libraries' classes, into one that names the repository."""
    try:
        yield
    except TimmSkError:
        raise
    except Exception as error:
        raise ReleaseError(
            f'{repo_id}: {type(error).__name__}: {" ".join(str(error).split())}. '
            'Publishing again continues where this stopped.'
        ) from error
