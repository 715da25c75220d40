"""Downloads models from the Hugging Face hub by their names: :func:`download`.

Only huggingface_hub (the extra ``hub``) uses the network. Its cache, its settings and its login apply.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gemlet.adapters.opening import ADAPTER_FILES
from gemlet.adapters.peft_config import CONFIG_FILE
from gemlet.base.front_door import public
from gemlet.base.handlers import importing
from gemlet.base.text import show
from gemlet.checkpoint.gguf_files import gguf_models, mmproj_among, split_names
from gemlet.config.image_settings import PREPROCESSOR_FILES
from gemlet.errors import HubError, InvalidRequestError, missing_extra
from gemlet.sources.hub_names import REPOSITORY, check_access, is_repository, plain_name
from gemlet.tokenizer.stored import STORED_FILE, TOKENIZER_FILES

__all__ = ["download", "download_adapter"]

# The files of a repository that gemlet reads, besides the vocabulary. Subfolders of a repository usually
# contain something else, such as weights in another format. Only the numbered subfolders of
# sentence-transformers are read: they contain the last layers of an embedding model.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "model*.safetensors",
    "model.safetensors.index.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    *PREPROCESSOR_FILES,
    "[0-9]*/config.json",
    "[0-9]*/model.safetensors",
)
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
_UP = {"", ".", ".."}  # a path with one of these parts is ignored, because it may lead out of the repository
_SHOWN = 16  # file names in an error message


@public
def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: bool | None = None,
) -> str:
    """Downloads the files of a model that gemlet reads, unless they are in the hub's cache. Returns their
    folder, or for a GGUF model the path of its (first) file.

    Args:
        name: the name on the hub, such as "google/gemma-3-1b-it". For a GGUF model also name the file:
            "someone/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_0.gguf", or only ":Q4_0" if exactly one file has this
            word in its name. If a repository has no safetensors and only one GGUF model, the repository's
            name is enough. All parts of a split model and the file of the model's towers (mmproj) are
            downloaded, too. The name may begin with "hf.co/" or the hub's address.
        revision: a branch, a tag or a commit; None: the main branch.
        token: an access token; None: the one that `hf auth login` stored; False: no token.
        progress: False hides the progress bars of the hub.

    Raises:
        HubError: there is no such model or revision, its licence is not accepted, the network is down and the
            cache does not have all files, or the disk is full.
        UnsupportedError: huggingface_hub is not installed.
        InvalidRequestError: an argument is wrong; the repository has no such GGUF file; or it has several,
            and none is named. The message lists them.

    >>> try:
    ...     download("gemma-3-1b-it")  # the owner is missing
    ... except InvalidRequestError as error:
    ...     print('like "google/gemma-3-1b-it"' in str(error))
    True
    """
    if progress is not None and not isinstance(progress, bool):
        raise InvalidRequestError(f"progress: got {show(progress)}, expected None, True or False")
    return fetch(choose(name, revision, token), token, progress=progress is not False)


class ChosenFiles(NamedTuple):
    """The files that make up a model on the hub.

    Attributes:
        repository: the name of the repository.
        file: the (first) GGUF file; None for a model in safetensors.
        names: all files in the repository.
        patterns: glob patterns of the model's files.
        ignored: glob patterns of files that are left out although they match ``patterns``.
        is_here: True if the hub cannot be reached, so that only files in the cache are used.
        revision: the branch, tag or commit.
    """

    repository: str
    file: str | None
    names: set[str]
    patterns: list[str]
    ignored: list[str]
    is_here: bool
    revision: str | None

    def files(self) -> list[str]:
        """The files of the model, which :func:`fetch` downloads."""

        def fits(name: str, patterns: list[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        return [n for n in sorted(self.names) if fits(n, self.patterns) and not fits(n, self.ignored)]


def choose(
    name: str,
    revision: str | None,
    token: str | bool | None,
    *,
    mmproj: bool = True,
    as_drafter: bool = False,
) -> ChosenFiles:
    """Finds out which files :func:`download` fetches for these arguments, and raises the same errors. Without
    ``mmproj``, the file of a GGUF model's towers is left out. With ``as_drafter``, the draft model in the
    repository is chosen, if there is one."""
    expected = (
        'expected a model on the hub, like "google/gemma-3-1b-it", or a GGUF file there, like '
        '"someone/gemma-GGUF:gemma-Q4_0.gguf" or "someone/gemma-GGUF:Q4_0"'
    )
    found, quantization = _look_up(name, revision, token, expected)
    repository, file, names = found.repository, found.file, found.names
    if quantization is not None:
        file = _quantized(repository, names, quantization, as_drafter)
    elif file is None:
        file = _only_gguf(repository, names, as_drafter)
    elif file not in names:
        raise InvalidRequestError(f"{repository}: has no file {file}; its GGUF models are {_models(names)}")
    if file is None:
        tokenizers = [name for name in TOKENIZER_FILES if name in names]
        if tokenizers[:1] == [STORED_FILE]:  # gemlet's own file has the content of all others
            tokenizers = tokenizers[:1]
        return found._replace(patterns=[*_FILES, *tokenizers], ignored=["[!0-9]*/*"])
    folder, name = os.path.split(file)
    fetched = [os.path.join(folder, part) for part in split_names(folder, name)]
    with contextlib.suppress(
        InvalidRequestError
    ):  # several mmproj files might belong to the model: take none
        if mmproj and (towers := mmproj_among(file, names)) is not None:
            fetched.append(towers)
    patterns = [glob.escape(one) for one in fetched]
    return found._replace(file=file, patterns=patterns)


def download_adapter(
    name: str, *, revision: str | None, token: str | bool | None, progress: bool = True
) -> str:
    """Downloads the adapter ``name``. Returns its folder, or for an adapter in GGUF the path of the file.

    Raises the errors of :func:`download`, also for a repository without an adapter.
    """
    expected = 'expected an adapter on the hub, like "someone/gemma-3-1b-it-lora", or a GGUF file there'
    found, quantization = _look_up(name, revision, token, expected)
    repository, file, names = found.repository, found.file, found.names
    if quantization is not None:
        file = _quantized(repository, names, quantization)
    if file is None and CONFIG_FILE in names:
        return fetch(found._replace(patterns=list(ADAPTER_FILES)), token, progress=progress)
    models = gguf_models(names)
    if file is None and len(models) == 1:
        file = models[0]
    if file is None or file not in names:
        raise InvalidRequestError(
            f"{repository}: is not an adapter: it has no {CONFIG_FILE}"
            + (f" and no file {file}" if file else "")
            + (f"; name one of its GGUF files, {_models(names)}" if models else "")
        )
    return fetch(found._replace(file=file, patterns=[glob.escape(file)]), token, progress=progress)


def _look_up(
    name: str, revision: str | None, token: str | bool | None, expected: str
) -> tuple[ChosenFiles, str | None]:
    """The repository in ``name``, and the file or the quantization if ``name`` has one."""
    if not isinstance(name, str) or not is_repository(name):
        raise InvalidRequestError(f"name is {show(name)}; {expected}")
    check_access(revision, token)
    name, named = plain_name(name)
    if named is not None and revision not in (None, named):
        raise InvalidRequestError(
            f"revision is {show(revision)}, but the address names {show(named)}; give only one of them"
        )
    revision = revision or named
    if importlib.util.find_spec("huggingface_hub") is None:
        raise missing_extra(f"{name}: no such folder; downloading a model of this name", "hub")
    match = REPOSITORY.fullmatch(name)
    repository, file, quantization = match.groups() if match else (name, None, None)
    names, is_here = _list_files(repository, revision, token)
    return ChosenFiles(repository, file, names, [], [], is_here, revision), quantization


def fetch(
    choice: ChosenFiles,
    token: str | bool | None,
    *,
    without: Sequence[str] = (),
    whole: bool = False,
    progress: bool = True,
) -> str:
    """Downloads a model, without the files that match the patterns ``without``. Returns its folder or its
    GGUF file; with ``whole``, always the folder. Without ``progress``, the hub shows no bars."""
    with importing():
        import huggingface_hub
        from huggingface_hub.utils.tqdm import tqdm

    repository, revision = choice.repository, choice.revision
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=token,
            allow_patterns=choice.patterns,
            ignore_patterns=[*choice.ignored, *without],
            local_files_only=choice.is_here,
            tqdm_class=tqdm if progress else type("NoBar", (tqdm,), {"__init__": _without_bar}),
        )
    except Exception as problem:  # the errors of a broken server or disk have no common class
        raise HubError(f"{repository}: {explain(problem, repository, revision)}") from problem
    return snapshot if choice.file is None or whole else os.path.join(snapshot, choice.file)


def _without_bar(bar: Any, *arguments: Any, **options: Any) -> None:
    super(type(bar), bar).__init__(*arguments, **{**options, "disable": True})


def _list_files(repository: str, revision: str | None, token: str | bool | None) -> tuple[set[str], bool]:
    """Returns (the files of a repository, False). If the hub cannot be reached, returns (the repository's
    files in the cache, True)."""
    with importing():
        import huggingface_hub
        from huggingface_hub import errors

    try:
        siblings = huggingface_hub.HfApi().model_info(repository, revision=revision, token=token).siblings
        names = {sibling.rfilename for sibling in siblings or ()}
        return {name for name in names if _UP.isdisjoint(name.split("/"))}, False
    except Exception as problem:
        try:
            snapshot = huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=[]
            )
            found = glob.glob("**", root_dir=snapshot, recursive=True)
            names = {name for name in found if os.path.isfile(os.path.join(snapshot, name))}
            # After inspect(), the cache may have all files of a model but the weights.
            if not any(name.endswith((".safetensors", ".gguf")) for name in names):
                raise errors.LocalEntryNotFoundError("no weights")
            return names, True
        except Exception as missing:
            said = isinstance(problem, errors.HfHubHTTPError | errors.HFValidationError)
            reason = explain(problem if said else missing, repository, revision)
            raise HubError(f"{repository}: {reason}") from problem


def _only_gguf(repository: str, names: Collection[str], as_drafter: bool) -> str | None:
    """The only GGUF model among the files ``names`` of a repository. None if there is no GGUF model, or if
    the repository also has the model in safetensors. Several GGUF models are an error."""
    models = gguf_models(names, as_drafter=as_drafter)
    if not models or ("config.json" in names and not _WEIGHTS.isdisjoint(names)):
        return None
    if len(models) > 1:
        raise InvalidRequestError(
            f"{repository}: has several GGUF models; name one, as in {repository}:{models[0]}. They are "
            f"{_some(models)}"
        )
    return models[0]


def _quantized(repository: str, names: Collection[str], quantization: str, as_drafter: bool = False) -> str:
    """The GGUF model that has ``quantization``, such as "Q4_K_M", as a word in its name."""
    word = re.compile(rf"(?:^|[-_./]){re.escape(quantization)}(?=$|[-_./])", re.IGNORECASE)
    models = gguf_models(names, as_drafter=as_drafter)
    found = [name for name in models if word.search(name.removesuffix(".gguf"))]
    if len(found) == 1:
        return found[0]
    which = ", ".join(found[:_SHOWN]) if found else _some(models)
    raise InvalidRequestError(
        f"{repository}: has {len(found) or 'no'} GGUF model{'s' * (len(found) > 1)} called {quantization}; "
        f"name one of {which}"
    )


def _models(names: Collection[str]) -> str:
    """The GGUF models among these files, for a message."""
    return _some(gguf_models(names))


def _some(models: Sequence[str]) -> str:
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return (", ".join(models[:_SHOWN]) or "none") + more


def explain(problem: Exception, name: str, revision: str | None) -> str:
    """Turns an error of huggingface_hub into one line that says what went wrong and what to do."""
    from huggingface_hub import constants, errors

    status: Any = getattr(getattr(problem, "response", None), "status_code", None)
    if isinstance(problem, errors.GatedRepoError):
        return (
            "the model's licence has to be accepted first; accept it at "
            f"{constants.ENDPOINT}/{name}, and then pass token=, or log in with `hf auth login`"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"has no revision {show(revision)}; expected a branch, a tag or a commit"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return (
            "there is no such folder, and the hub has no such model, or it is private; check the name, or "
            "pass a token that may read it"
        )
    if isinstance(problem, errors.HFValidationError):
        return "is not a name of a model; expected OWNER/NAME"
    if isinstance(problem, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "is not in the cache, and HF_HUB_OFFLINE forbids downloading"
        return f"is not in the cache, and the hub ({constants.ENDPOINT}) cannot be reached; check the network"
    if status in (401, 403):
        return f"the hub refused the token (HTTP {status}); pass one that may read this model"
    if isinstance(problem, errors.HfHubHTTPError):
        return f"the hub answered with HTTP {status}; try again later"
    lines = str(problem).splitlines() or [""]
    return f"the download failed: {type(problem).__name__}: {lines[0]}"
