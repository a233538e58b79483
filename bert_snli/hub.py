"""Push a model folder to the Hugging Face Hub, with a model card, in one commit."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from bert_snli import files
from bert_snli.errors import BertSnliError, one_line
from bert_snli.inference import describe_hub_failure, load_classifier, load_config, load_tokenizer, load_weights
from bert_snli.model_card import GENERATED, is_converted_model, is_pretraining_model, make_card, outdated_results
from bert_snli.modeling import D2LBertForPreTraining

MODEL_FILES = (files.CONFIG, files.WEIGHTS, files.TOKENIZER, "tokenizer_config.json")
CODE_MODULES = "configuration_d2l_bert modeling_d2l_bert layers_d2l_bert nli_pipeline pair_truncation"
CODE_FILES = tuple(f"{name}.py" for name in CODE_MODULES.split())
HISTORY_FILES = (files.CERTIFICATE, files.INITIAL_CERTIFICATE, files.HISTORY, files.RECIPE_FILE, files.METRICS)
# Results and ONNX files are valid for these weights only.
REPORT_FILES = (files.EVALUATION_REPORT, "report/report.html", "report/report.json", "report/*.png")
RESULT_FILES = (files.TRAIN_RESULTS, files.EVALUATIONS, files.CONFUSION_MATRICES, *REPORT_FILES, *files.HUB_ONNX_FILES)
# Names and patterns of the files that are pushed. No other files are pushed.
UPLOAD_PATTERNS = (*MODEL_FILES, *CODE_FILES, files.CARD, *HISTORY_FILES, files.CURVE, *RESULT_FILES)
LICENSE = "apache-2.0"
logger = logging.getLogger(__name__)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Push with bert-snli",
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
        commit_message: the message of the commit.
        license: the Hub's id of the licence, for the model card.

    Returns:
        The address of the commit.

    Raises:
        BertSnliError: the folder holds no model, or the Hub rejects the push. The repository is then unchanged.

    Example:
        >>> from bert_snli import push_to_hub
        >>> address = push_to_hub("quickstart/finetuned", "user/snli", private=True)
        >>> "user/snli/commit/" in address
        True
    """
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "model"
        for note in stage_upload(Path(folder), repo_id, staged, license=license, revision=revision):
            logger.info(note)
        return upload(staged, repo_id, private=private, revision=revision, commit_message=commit_message)


def stage_upload(
    folder: Path, repo_id: str, output_dir: Path, *, license: str = LICENSE, revision: str | None = None
) -> list[str]:
    """Copy the files in `folder` that match `UPLOAD_PATTERNS` into a new folder, and add a model card.

    Returns notes for the user: the files that are left out, and whether the user's own README.md is pushed.
    """
    check_repo_id(repo_id)
    check_model(folder)
    names = {path.relative_to(folder).as_posix() for pattern in UPLOAD_PATTERNS for path in folder.glob(pattern)}
    # An earlier run in this folder may have left the file that does not describe this model.
    names.discard(files.HISTORY if is_converted_model(folder) else files.CERTIFICATE)
    notes = []
    if outdated := sorted(outdated_results(folder) & names):
        notes.append(f"not pushed, because they belong to other weights: {', '.join(outdated)}")
    with files.atomic_folder(output_dir) as target:
        for name in names.difference(outdated):
            if (folder / name).is_symlink():
                raise BertSnliError(f"{folder / name}: is a symbolic link; replace it with the file, or remove it")
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, target / name)
        card = target / files.CARD
        if card.is_file() and GENERATED not in card.read_text(encoding="utf-8", errors="replace"):
            notes.append(f"{folder / files.CARD}: your own file is pushed unchanged")
        else:
            text = make_card(folder, repo_id, license=license, revision=revision)
            card.write_text(text, encoding="utf-8")
    return notes


def check_model(folder: Path) -> None:
    """Check that a folder is a complete converted, pretrained or fine-tuned model."""
    if not folder.is_dir():
        raise BertSnliError(f"{folder}: no such folder; give a converted, pretrained or fine-tuned model")
    if is_pretraining_model(config := load_config(str(folder))):
        _, missing = load_weights(str(folder), config, D2LBertForPreTraining)
        if missing:
            raise BertSnliError(f"{folder}: its weights have no {min(missing)}; convert or pretrain it again")
    else:
        load_classifier(str(folder))
    load_tokenizer(str(folder))
    if absent := [name for name in MODEL_FILES + CODE_FILES if not (folder / name).is_file()]:
        raise BertSnliError(f"{folder}: has no {absent[0]}; save or convert the model again")


def upload(staged: Path, repo_id: str, *, private: bool, revision: str | None, commit_message: str) -> str:
    """Push all files of a staged folder in one commit; return its address.

    Removes files of an earlier push that are not in `staged`; other files in the repository stay.
    """
    check_login(repo_id)
    uploads = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
    with explain_hub_errors(repo_id):
        api = HfApi()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise BertSnliError(f"private: {repo_id} already exists and is public; make it private on the Hub first")
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        earlier = {name for name in present if matches_upload_pattern(name)}
        # `upload_folder` may split a push into several commits.
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationDelete(name) for name in sorted(earlier - uploads.keys())]
        operations += [CommitOperationAdd(name, path) for name, path in uploads.items()]
        return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision).commit_url


def matches_upload_pattern(name: str) -> bool:
    """Return whether a file name matches one of `UPLOAD_PATTERNS`. A `*` does not match a slash."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in UPLOAD_PATTERNS)


def check_repo_id(repo_id: str, name: str = "repo_id") -> None:
    """Check that `repo_id`, the value of the caller's parameter `name`, is `user/name` or `organisation/name`."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("user or organisation is missing")
    except HFValidationError as error:
        raise BertSnliError(f"{name} {repo_id}: not the name of a repository; give one such as user/name") from error


def check_login(repo_id: str) -> None:
    """Check that the user is logged in to the Hub."""
    if get_token() is None:
        raise BertSnliError(f"{repo_id}: you are not logged in to the Hub; run hf auth login, or set HF_TOKEN")
    with explain_hub_errors(repo_id):
        HfApi().whoami()


@contextmanager
def explain_hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into a `BertSnliError` of one line."""
    try:
        yield
    except BertSnliError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # A ValueError is about the model card. Its message is better than its cause, which is only an HTTP status 400.
        is_request = isinstance(error, HTTPError) or not isinstance(error, ValueError)
        failure = describe_hub_failure(error) if is_request else None
        raise BertSnliError(f"{repo_id}: {failure or one_line(error)}") from error


def copy_initial_certificate(base_model: Path, output_dir: Path) -> None:
    """Copy the certificate of a converted base model into the folder of its fine-tuned model, under another name.

    Removes the copy of an earlier run.
    """
    copy = output_dir / files.INITIAL_CERTIFICATE
    if is_converted_model(base_model):
        shutil.copyfile(base_model / files.CERTIFICATE, copy)
    else:
        copy.unlink(missing_ok=True)


def remove_results(output_dir: Path) -> None:
    """Remove the results of the old weights, which would otherwise be pushed with the new weights."""
    for pattern in RESULT_FILES:
        for path in output_dir.glob(pattern):
            path.unlink()
