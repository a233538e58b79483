"""A model folder on the hub: which of its files go there, and how, in one commit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from bert_snli.card_templates import GENERATED, is_converted_model, make_converted_card, where_it_is
from bert_snli.errors import BertSnliError
from bert_snli.files import (
    CARD,
    CERTIFICATE,
    CONFIG,
    CONFUSION_MATRICES,
    CURVE,
    EVALUATION_REPORT,
    EVALUATIONS,
    INITIAL_CERTIFICATE,
    METRICS,
    RECIPE_FILE,
    TOKENIZER,
    TRAIN_RESULTS,
    WEIGHTS,
    atomic_folder,
)
from bert_snli.inference import causes_of, hub_failure, load_classifier, load_config, load_tokenizer, load_weights
from bert_snli.model_card import is_pretraining_model, make_card, measured_on_other_weights
from bert_snli.modeling import D2LBertForPreTraining
from bert_snli.provenance import PROVENANCE

# What is known of the weights, and of no others.
MEASUREMENT_PATTERNS = (
    TRAIN_RESULTS,
    EVALUATIONS,
    CONFUSION_MATRICES,
    EVALUATION_REPORT,
    "report/report.html",
    "report/report.json",
    "report/*.png",
)
# What goes to the hub, and whether a folder without it is no model. Nothing else does, whatever lies in the folder.
UPLOAD_PATTERNS = {
    CONFIG: True,
    WEIGHTS: True,
    TOKENIZER: True,
    "tokenizer_config.json": True,
    "configuration_d2l_bert.py": True,
    "modeling_d2l_bert.py": True,
    "layers_d2l_bert.py": False,  # older folders have these layers in modeling_d2l_bert.py
    "nli_pipeline.py": False,  # folders that were saved before there was one
    "pair_truncation.py": False,
    CARD: False,  # generated, unless the user has written it
    CERTIFICATE: False,  # of a converted model only: fine-tuning changes what it certifies
    INITIAL_CERTIFICATE: False,
    PROVENANCE: False,
    RECIPE_FILE: False,
    METRICS: False,
    CURVE: False,
    **dict.fromkeys(MEASUREMENT_PATTERNS, False),
}
MAIN, LICENSE, COMMIT_MESSAGE = "main", "apache-2.0", "Push with bert-snli"
HTTP_ERRORS = {
    401: "the hub does not know your token; make one on huggingface.co/settings/tokens and run hf auth login",
    403: "your token must not write there; take one with write access (hf auth login), or a name of your own",
    404: "no such repository or branch, or none that your token may see; check the name",
}


@dataclass(frozen=True)
class Staged:
    """What a push consists of: the files by their path in the repository, and whether the card is the user's own.

    `left_out` are results that were measured on other weights than those that lie here.
    """

    files: dict[str, Path | bytes]
    own_card: bool
    left_out: list[str]


def stage(folder: Path, repo_id: str, *, license: str = LICENSE, revision: str | None = None) -> Staged:
    """Everything of `folder` that goes to the hub, and its card. Writes nothing.

    A README.md that bert-snli did not generate is the user's and is pushed unchanged. A converted model is not compared
    with its certificate here: see `conversion.verify_conversion`.

    Raises:
        BertSnliError: `folder` is not a converted, pretrained or fine-tuned model.
    """
    check_repo_id(repo_id, "--repo_id")
    if not folder.is_dir():
        raise BertSnliError(f"{folder}: no such folder; give one that bert-snli convert, pretrain or finetune wrote")
    if is_pretraining_model(config := load_config(str(folder))):
        _, missing = load_weights(str(folder), config, D2LBertForPreTraining)
        if missing:
            raise BertSnliError(f"{folder}: a pretrained model that lacks {min(missing)}; convert or pretrain it again")
    else:
        load_classifier(str(folder))
    load_tokenizer(str(folder))
    converted = is_converted_model(folder)
    files: dict[str, Path | bytes] = {}
    for pattern, required in UPLOAD_PATTERNS.items():
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if required and not found:
            raise BertSnliError(f"{folder}: holds no {pattern}; save or convert the model again")
        for path in found:
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BertSnliError(f"{folder / name}: a link; put the file itself there, or move it away")
            files[name] = path
    elsewhere = measured_on_other_weights(folder) & files.keys()
    files.pop(PROVENANCE if converted else CERTIFICATE, None)  # what another run left that wrote here before
    for name in elsewhere:
        del files[name]
    own_card = CARD in files and GENERATED.encode() not in (folder / CARD).read_bytes()
    if not own_card:
        if converted:
            card = make_converted_card(folder, where_it_is(repo_id, revision), license)
        else:
            card = make_card(folder, repo_id, license=license, revision=revision)
        files[CARD] = card.encode()
    return Staged(files, own_card, sorted(elsewhere))


def write_staged(staged: Staged, output_dir: Path) -> None:
    """Write what would be pushed into a new folder; the hub is not asked for anything.

    Raises:
        BertSnliError: `output_dir` holds something already, or cannot be written.
    """
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise BertSnliError(f"--output_dir {output_dir}: already holds files; name another folder")
    with atomic_folder(output_dir) as partial:
        for name, content in staged.files.items():
            target = partial / name
            target.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)


def push(
    staged: Staged,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
) -> str:
    """Push in one commit; returns its address. Repository and branch are made where they are missing.

    Files of an earlier push that the folder no longer has are removed in the same commit; what else lies in the
    repository stays.

    Raises:
        BertSnliError: the hub does not take it; its files are then as they were.
    """
    check_login(repo_id)
    with hub_errors(repo_id):
        api = HfApi()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise BertSnliError(f"--private: {repo_id} is there already and public; change that on the hub first")
        if revision not in (None, MAIN):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        gone = [
            path
            for path in api.list_repo_files(repo_id, revision=revision)
            if path not in staged.files and any(_matches(path, pattern) for pattern in UPLOAD_PATTERNS)
        ]
        # Not `upload_folder`, which cuts a push into several commits where it thinks fit.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path_in_repo=path) for path in gone),
                *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in staged.files.items()),
            ],
            commit_message=commit_message,
            revision=revision,
        )
    return commit.commit_url


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
    license: str = LICENSE,
) -> str:
    """Push a model folder to the Hugging Face Hub in one commit, with a model card.

    A converted model is pushed with its certificate. Call `conversion.verify_conversion` first to check that the
    certificate still describes the folder; the command `bert-snli push` does.

    Args:
        folder: a converted, pretrained or fine-tuned model.
        repo_id: `user/name` or `organisation/name`; the repository is created if it is missing.
        private: create the repository as private.
        revision: the branch, created if it is missing; by default `main`.
        commit_message: of the commit.
        license: the licence that the card names, as the Hub abbreviates it.

    Returns:
        The address of the commit.

    Raises:
        BertSnliError: the folder holds no model, or the Hub refuses it; the repository is then unchanged.
    """
    staged = stage(Path(folder), repo_id, license=license, revision=revision)
    return push(staged, repo_id, private=private, revision=revision, commit_message=commit_message)


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and PurePosixPath(path).match(pattern)


def check_repo_id(repo_id: str, option: str) -> None:
    """See that `repo_id` is a user's or an organisation's name and a model's.

    Raises:
        BertSnliError: it is not.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("user or organisation is missing")
    except HFValidationError as error:
        raise BertSnliError(f"{option} {repo_id}: no name of a repository; give one such as user/name") from error


def check_login(repo_id: str) -> None:
    """See that there is a token, and that the hub knows it.

    Raises:
        BertSnliError: there is none, or the hub does not know it or cannot be reached.
    """
    if get_token() is None:
        raise BertSnliError(f"{repo_id}: nobody is logged in to the hub; run hf auth login, or set HF_TOKEN")
    with hub_errors(repo_id):
        HfApi().whoami()


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Say in one line what the hub answered, or that it did not.

    Raises:
        BertSnliError: anything went wrong on the way.
    """
    try:
        yield
    except BertSnliError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise BertSnliError(f"{repo_id}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong: uploads wrap the error that says it, and one about the card says more than what it wraps."""
    if isinstance(error, ValueError) and not isinstance(error, HTTPError):
        return " ".join(str(error).split())
    causes = list(causes_of(error))
    for cause in causes:
        if (response := getattr(cause, "response", None)) is not None and response.status_code in HTTP_ERRORS:
            return HTTP_ERRORS[response.status_code]
    if (failure := hub_failure(causes)) is not None:
        return failure
    return " ".join(str(error).split())


def copy_initial_certificate(start: Path, output_dir: Path) -> None:
    """Put the certificate of the converted model that training starts from beside the weights that come of it.

    Under another name, as it does not describe them. That of a start which was itself fine-tuned is not kept.
    """
    copy = output_dir / INITIAL_CERTIFICATE
    if is_converted_model(start):
        shutil.copyfile(start / CERTIFICATE, copy)
    else:
        copy.unlink(missing_ok=True)


def remove_measurements(output_dir: Path) -> None:
    """Remove what was measured of the weights that training is going to replace: it would be pushed with the new."""
    for pattern in MEASUREMENT_PATTERNS:
        for path in output_dir.glob(pattern):
            path.unlink()
