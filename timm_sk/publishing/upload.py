"""Publishing checkpoints: a row of the table, or an exported folder, as a tagged repository on the Hub.

A release is safe to repeat. Files that the repository has already are not sent again, all others go in one commit, and
the tag is set last, after every file was read back and compared. A tag never moves.

A row's tag is `v<version of timm_sk>`, because the table that defines the weights is part of that version. Fine-tuned
weights follow no version of timm_sk: their tags count the releases of their own repository, v1, v2, …
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from .. import __version__
from ..checkpoints import CHECKPOINTS
from ..errors import ReleaseError, TimmSkError, UnpublishableError
from ..pretrained import sha256_of
from ..pretrained.lookup import find_row
from ..pretrained.verify import git_blob_sha1_of
from .exported import copy_exported, require_exported
from .hub_folder import CARD, GOLDEN, GOLDEN_TOLERANCE, WEIGHTS, read_golden
from .release import build_folder, reason_not_to_publish

TAG = f'v{__version__}'


@dataclass(frozen=True)
class Plan:
    """What a release would do."""

    repo_id: str
    head: str | None  # commit that was compared: the tag's if it is set, else the newest; None without a repository
    tag: str
    changes: dict[str, str]  # 'added', 'changed' or 'equal' by path; other files in the repository are left alone
    tagged: bool = False  # whether the tag is set already

    @property
    def to_send(self) -> list[str]:
        return [path for path, change in self.changes.items() if change != 'equal']


@dataclass(frozen=True)
class Outcome:
    """Outcome of one release: 'published', 'tagged', 'unchanged', 'planned', 'refused' or 'failed', and details."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Publishes repositories of one organisation.

    Its methods raise a ReleaseError if the Hub fails, or returns other files than were sent.
    """

    org: str  # organisation or user on the Hub
    private: bool = False  # make new repositories private; a public one is refused, no repository's visibility changed
    dry_run: bool = False  # only find out what would change
    api: HfApi = field(default_factory=lambda: HfApi())  # with the endpoint and token of the environment
    show: Callable[[Plan], None] = lambda plan: None  # called with each plan before anything is sent

    def publish(self, name: str) -> Outcome:
        """Publish the checkpoint of the table named `arch.tag` as `org/arch.tag`.

        Raises:
            UnknownModelError: If the table has no such row.
            NoWeightsError: If the row has no weights.
            UnpublishableError: If the row may not be published, or this version has published other files.
        """
        row = find_row(name)
        with TemporaryDirectory(prefix='timm_sk-') as folder:
            build_folder(row, Path(folder), repo_id=f'{self.org}/{row.name}')
            return self._release(row.name, Path(folder), tag=TAG)

    def publish_folder(self, exported: Path) -> Outcome:
        """Check a folder that `timm-sk finetune` or `timm-sk weights package` wrote, and publish it as `org/arch.tag`.

        Only the files of an export are sent, with the name of the repository in the card; no link is followed.

        Raises:
            UnpublishableError: If the folder is incomplete, has a link or other fields than an export, states no valid
                licence, or does not load as the same model.
        """
        with TemporaryDirectory(prefix='timm_sk-') as scratch:
            folder = Path(scratch)
            copy_exported(exported, folder)  # which nobody changes between the checks and the upload
            try:
                name = require_exported(folder)
            except TimmSkError as error:
                raise type(error)(str(error).replace(str(folder), str(exported))) from error
            card = (folder / CARD).read_text(encoding='utf-8')
            (folder / CARD).write_text(card.replace(f'ORG/{name}', f'{self.org}/{name}'), encoding='utf-8')
            return self._release(name, folder, tag=None)

    def publish_all(self) -> Iterator[Outcome]:
        """Publish every row that may be published, and report why others are not; a failure does not stop the rest."""
        for row in filter(lambda row: row.sources, CHECKPOINTS.values()):
            if reason := reason_not_to_publish(row):
                yield Outcome(row.name, 'refused', reason)
                continue
            try:
                yield self.publish(row.name)
            except Exception as error:  # the next checkpoint may still succeed
                yield Outcome(row.name, 'failed', f'{type(error).__name__}: {error}')

    def _release(self, name: str, folder: Path, *, tag: str | None) -> Outcome:
        repo_id = f'{self.org}/{name}'
        with _hub_errors(repo_id, can_continue=not self.dry_run):
            plan = self._plan(repo_id, folder, tag=tag)
            self.show(plan)
            to_send = f'{len(plan.to_send)} files'
            if plan.tagged and plan.to_send:
                raise UnpublishableError(
                    f'{repo_id} has published {plan.tag} with other files ({", ".join(plan.to_send)}), '
                    "and a version never changes: raise timm_sk's version."
                )
            if plan.tagged:
                return Outcome(name, 'unchanged', f'{repo_id} is at {plan.tag}: nothing to do')
            if self.dry_run:
                return Outcome(name, 'planned', f'{repo_id}: {to_send} to send, tag {plan.tag}')
            commit = self._commit(plan, folder) if plan.to_send else plan.head
            self._read_back(plan, commit, folder)
            self.api.create_tag(repo_id, tag=plan.tag, revision=commit)
        state = 'published' if plan.to_send else 'tagged'
        return Outcome(name, state, f'{repo_id} at {plan.tag}: {to_send} sent, all read back')

    def _plan(self, repo_id: str, folder: Path, *, tag: str | None) -> Plan:
        """Compare the folder of a release with a repository, without writing to it.

        A golden file that differs from the repository's by rounding only, because another machine computed it, is
        replaced by the repository's. Without a tag, it is the last release's if that has these files, else the next.
        """
        try:
            info = self.api.repo_info(repo_id)
        except RepositoryNotFoundError:
            return Plan(repo_id, None, tag or 'v1', dict.fromkeys(_paths(folder), 'added'))
        if self.private and not info.private:
            raise UnpublishableError(
                f'{repo_id} is public already: publish without --private, or make it private first.'
            )
        tags = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(repo_id).tags}
        number = max((int(name[1:]) for name in tags if re.fullmatch(r'v\d+', name)), default=0)
        last = tag or f'v{number}'
        if last in tags:
            plan = Plan(repo_id, tags[last], last, self._changes(repo_id, tags[last], folder), tagged=True)
            if tag or not plan.to_send:
                return plan
        return Plan(repo_id, info.sha, tag or f'v{number + 1}', self._changes(repo_id, info.sha, folder))

    def _changes(self, repo_id: str, commit: str | None, folder: Path) -> dict[str, str]:
        entries = self.api.list_repo_tree(repo_id, recursive=True, revision=commit)
        published = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        changes = {path: _change(folder / path, published.get(path)) for path in _paths(folder)}
        if changes[GOLDEN] == 'changed' and changes[WEIGHTS] == 'equal' and self._adopt_golden(repo_id, commit, folder):
            changes[GOLDEN] = 'equal'
        return changes

    def _adopt_golden(self, repo_id: str, commit: str | None, folder: Path) -> bool:
        with TemporaryDirectory(prefix='timm_sk-') as scratch:
            published = Path(self.api.hf_hub_download(repo_id, GOLDEN, revision=commit, local_dir=scratch))
            theirs, ours = read_golden(published), read_golden(folder / GOLDEN)
            if not torch.equal(theirs['inputs'], ours['inputs']) or theirs['logits'].shape != ours['logits'].shape:
                return False
            difference = (theirs['logits'] - ours['logits']).abs().max()
            same = bool(difference <= GOLDEN_TOLERANCE * ours['logits'].abs().max())
            if same:
                shutil.copyfile(published, folder / GOLDEN)
            return same

    def _commit(self, plan: Plan, folder: Path) -> str:
        """Send all changes in one commit on top of the one that was compared."""
        head = plan.head
        if head is None:
            self.api.create_repo(plan.repo_id, private=self.private)
            head = self.api.repo_info(plan.repo_id).sha
        operations = [CommitOperationAdd(path, folder / path) for path in plan.to_send]
        message = f'{plan.repo_id.partition("/")[2]} by timm_sk {__version__}'
        return self.api.create_commit(plan.repo_id, operations, commit_message=message, parent_commit=head).oid

    def _read_back(self, plan: Plan, commit: str | None, folder: Path) -> None:
        with TemporaryDirectory(prefix='timm_sk-') as scratch:
            for path in _paths(folder):
                read = self.api.hf_hub_download(plan.repo_id, path, revision=commit, local_dir=scratch)
                if sha256_of(Path(read)) != sha256_of(folder / path):
                    raise ReleaseError(
                        f'{plan.repo_id} returns another {path} than was sent: {plan.tag} was not set. '
                        'Publish again; if that does not help, delete the file there first.'
                    )


def _paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def _change(path: Path, published: RepoFile | None) -> str:
    if published is None:
        return 'added'
    if published.lfs:
        return 'equal' if published.lfs.sha256 == sha256_of(path) else 'changed'
    return 'equal' if published.blob_id == git_blob_sha1_of(path) else 'changed'


@contextmanager
def _hub_errors(repo_id: str, *, can_continue: bool) -> Iterator[None]:
    """Turn the errors of the Hub's client, which are of many classes, into one that names the repository."""
    try:
        yield
    except TimmSkError:
        raise
    except Exception as error:
        advice = ' Publishing again continues where this stopped.' if can_continue else ''
        raise ReleaseError(f'{repo_id}: {type(error).__name__}: {" ".join(str(error).split())}.{advice}') from error
