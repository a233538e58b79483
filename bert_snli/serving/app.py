"""The web page as a Gradio app: a tab for one pair, a tab for a file of pairs, and an endpoint for programs.

Neither the page nor the server sends requests to other servers. A Hugging Face Space shows the same page.
"""

import functools
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import gradio as gr
from packaging.requirements import Requirement

from bert_snli.data.pair_files import COLUMNS, DELIMITERS, count_pairs, iterate_pairs, write_predictions
from bert_snli.errors import BertSnliError
from bert_snli.files import atomic_folder, check_output_dir
from bert_snli.rendering import render
from bert_snli.serving.explanation import MAX_CHARACTERS, SPECIAL, ExplainedPredictor, Explanation, check_pair

MEANINGS = {
    "entailment": "If the premise is true, the hypothesis is true.",
    "contradiction": "If the premise is true, the hypothesis is false.",
    "neutral": "The premise does not say whether the hypothesis is true.",
}
EXAMPLES = [
    ["A woman in a red coat is walking her dog along the beach.", "A woman is outside with an animal."],
    ["Three children are playing football in the park.", "The children are asleep in their beds."],
    ["A man is playing the guitar on a street corner.", "The man wants to earn money for his rent."],
    ["Nobody is sitting on the bench by the lake.", "Two people are sitting on a bench."],
    ["A barista in a zoot suit pours a flat white.", "Someone is making coffee."],
]
MAX_FILE_SIZE = "5mb"
MAX_ROWS = 10_000
NUM_DISPLAYED_ROWS = 100
DELETE_FILES_AFTER = 3600  # seconds, for uploads and downloads on the server's disk
# Greys out the prediction if the text boxes no longer hold the predicted texts. The browser shows a new prediction
# after its change event, so the comparison waits for the next frame.
MARK_STALE = """(premise, hypothesis) => {
    requestAnimationFrame(() => {
        const shown = document.querySelector("#prediction .bs-prediction");
        const isStale = shown?.dataset.premise !== premise || shown?.dataset.hypothesis !== hypothesis;
        shown?.classList.toggle("bs-stale", isStale);
    });
    return [];
}"""
FONTS = ["system-ui", "sans-serif"]
# The files of a model folder that inference needs.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "*.py")


def show_errors(function: Callable) -> Callable:
    """Show a `BertSnliError` on the page. The text is escaped, because Gradio shows it as HTML."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except BertSnliError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    return wrapped


def build_app(predictor: ExplainedPredictor) -> gr.Blocks:
    """Build the app for a model."""

    @show_errors
    def explain(premise: str, hypothesis: str) -> str:
        return render_explanation(predictor.explain(premise, hypothesis))

    @show_errors
    def predict(premise: str, hypothesis: str) -> dict:
        check_pair(premise, hypothesis)
        (scores,) = predictor([(premise, hypothesis)])
        return {"label": next(iter(scores)), "scores": scores}

    @show_errors
    def predict_uploaded_file(path: str) -> tuple[str, Any, str]:
        summary, predictions_file, table = predict_file(predictor, Path(path))
        return summary, gr.File(str(predictions_file), visible=True), table

    title = f"Natural language inference with {predictor.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(DELETE_FILES_AFTER, DELETE_FILES_AFTER)) as app:
        gr.HTML(render("page_header.html", title=title, predictor=predictor, config=predictor.model.config))
        with gr.Tab("One pair"), gr.Row(elem_classes="bs-pair"):
            _add_pair_tab(explain, app)
        with gr.Tab("A file of pairs"):
            _add_file_tab(predict_uploaded_file)
        with gr.Accordion("Use it from a program", open=False):
            gr.Markdown(render("page_api.md"))
        # Without the queue, one POST returns one response.
        gr.api(predict, api_name="predict", api_description="The probability of each label for a pair.", queue=False)
    return app


def render_explanation(explanation: Explanation) -> str:
    """Return the predicted label, a bar for each probability, and the tokens coloured by weight."""
    tokens = [token for sentence in explanation.tokens.values() for token in sentence]
    # Special tokens often have the largest weights, and would make the colours of all words pale.
    largest_weight = max((token.weight for token in tokens if token.kind != SPECIAL), default=0.0) or 1.0
    names = [*MEANINGS, *sorted(map(str.lower, explanation.scores))]  # the order of the bars
    return render(
        "page_explanation.html",
        meanings=MEANINGS,
        explanation=explanation,
        bars=sorted(explanation.scores.items(), key=lambda bar: names.index(bar[0].lower())),
        kinds={token.kind for token in tokens},
        largest_weight=largest_weight,
    )


def _add_pair_tab(explain: Callable[[str, str], str], app: gr.Blocks) -> None:
    """Add sentences and examples on the left, and the prediction on the right. On a phone, the examples come last."""
    first_premise, first_hypothesis = EXAMPLES[0]
    with gr.Column(min_width=280):
        # In a box of one line, which grows with the text, Enter submits and Shift+Enter starts a new line.
        size = {"lines": 1, "max_lines": 8, "max_length": MAX_CHARACTERS}
        premise = gr.Textbox(first_premise, label="Premise", **size)
        hypothesis = gr.Textbox(first_hypothesis, label="Hypothesis", **size)
        button = gr.Button("Predict", variant="primary")
    with gr.Column(min_width=280):
        output = gr.HTML(elem_id="prediction", container=True, padding=True)
    inputs = [premise, hypothesis]
    events = [app.load, button.click, premise.submit, hypothesis.submit]
    gr.on(events, explain, inputs, output, api_visibility="private", show_progress="minimal")
    gr.on([premise.change, hypothesis.change, output.change], None, inputs, js=MARK_STALE, api_visibility="private")
    with gr.Column(min_width=280):
        title, names = "Examples: choose a hypothesis", [hypothesis for _, hypothesis in EXAMPLES]
        options = {"run_on_click": True, "cache_examples": False, "api_visibility": "private"}
        gr.Examples(EXAMPLES, inputs, output, explain, label=title, example_labels=names, **options)


def _add_file_tab(predict_uploaded_file: Callable[[str], tuple[str, Any, str]]) -> None:
    gr.Markdown(
        f"A CSV or TSV file with the columns `{COLUMNS[0]}` and `{COLUMNS[1]}`, or a JSONL file with these keys in "
        f"each line; at most {MAX_ROWS:,} pairs and {MAX_FILE_SIZE[:-2]} MB. The server deletes it within "
        f"{2 * DELETE_FILES_AFTER // 3600} hours."
    )
    upload = gr.File(label="File of pairs", file_types=[*DELIMITERS, ".jsonl"], height=140)
    summary = gr.Markdown()
    download = gr.File(label="All predictions", interactive=False, visible=False)
    table = gr.HTML(elem_id="table")
    outputs = [summary, download, table]
    upload.upload(predict_uploaded_file, upload, outputs, api_visibility="private")
    upload.clear(lambda: ("", gr.File(None, visible=False), ""), None, outputs, api_visibility="private")


def predict_file(predictor: ExplainedPredictor, path: Path) -> tuple[str, Path, str]:
    """Predict a file. Return a one-line summary, the path of the predictions, and the first rows as HTML."""
    count = count_pairs(path, name=path.name)
    if count > MAX_ROWS:
        raise BertSnliError(f"{path.name}: {count:,} pairs; give at most {MAX_ROWS:,} at once")
    pairs = list(iterate_pairs(path, name=path.name))
    predictions = predictor(pairs)
    labels = [next(iter(scores)) for scores in predictions]
    counts = ", ".join(f"{labels.count(label):,} {label}" for label in sorted(predictions[0]))
    displayed = f"; the first {NUM_DISPLAYED_ROWS} below" if len(pairs) > NUM_DISPLAYED_ROWS else ""
    predictions_file = path.with_name(f"{path.stem}-predictions.jsonl")  # Gradio deletes the files in this folder
    with predictions_file.open("w", encoding="utf-8") as file:
        write_predictions(file, [(pairs, predictions)], "jsonl")
    rows = list(zip(pairs, predictions, strict=True))[:NUM_DISPLAYED_ROWS]
    table = render("page_predictions.html", rows=rows)
    return f"**{len(pairs):,} pairs**: {counts}{displayed}", predictions_file, table


def start(predictor: ExplainedPredictor, host: str | None, port: int | None) -> gr.Blocks:
    """Serve the page in background threads. Call `close()` of the returned app to stop."""
    app = build_app(predictor)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=["monospace"]),
            css=resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8"),
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            prevent_thread_lock=True,
            quiet=True,
            run_history=False,  # would store what users type
            share=False,
            ssr_mode=False,
        )
    except (OSError, OverflowError) as error:
        what = "port: no port is free" if port is None else f"port {port}: is taken or not permitted"
        raise BertSnliError(f"{what}; give another port") from error
    return app


def serve(
    model_name_or_path: str,
    *,
    revision: str | None = None,
    host: str | None = None,
    port: int | None = None,
    log: Callable = print,
) -> None:
    """Serve the page of a fine-tuned model until Ctrl-C.

    `host` is by default the variable `GRADIO_SERVER_NAME`, which a Space sets, or 127.0.0.1. `port` is by default the
    variable `GRADIO_SERVER_PORT` or the first free port from 7860.
    """
    if host is not None:
        check_host(host)
    app = start(ExplainedPredictor(model_name_or_path, revision=revision), host, port)
    try:
        log(f"Serving {model_name_or_path} at {app.local_url} (Ctrl-C stops it)")
        threading.Event().wait()
    except KeyboardInterrupt:
        log("Stopped.")
    finally:
        app.close(verbose=False)


def check_host(host: str) -> None:
    """Check that the server can listen on `host`. Gradio would try 100 ports, for 5 seconds each."""
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
    except OSError as error:
        raise BertSnliError(f"host {host}: not an address of this machine ({error.strerror}); try 127.0.0.1") from error


def write_space(model_name_or_path: str, folder: Path, *, revision: str | None = None) -> None:
    """Write a Hugging Face Space for a fine-tuned model. A local model is copied into the Space."""
    check_output_dir(folder)
    # This fails for a model that the Space could not load.
    name = ExplainedPredictor(model_name_or_path, revision=revision).name
    source = Path(model_name_or_path)
    is_local = source.is_dir()
    readme = render(
        "space_readme.md",
        gradio_version=metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        hub_id=None if is_local else model_name_or_path,
        name=name,
    )
    model = f'str(Path(__file__).parent / "models" / {name!r})' if is_local else repr(model_name_or_path)
    app = render("space_app.py", model=model, revision=None if is_local else revision)
    with atomic_folder(folder) as space:
        for filename, text in {"README.md": readme, "app.py": app, "requirements.txt": list_requirements()}.items():
            (space / filename).write_text(text, encoding="utf-8")
        with resources.as_file(resources.files("bert_snli")) as package:
            shutil.copytree(package, space / "bert_snli", ignore=shutil.ignore_patterns("__pycache__"))
        if is_local:
            (space / "models" / name).mkdir(parents=True)
            for path in {path for pattern in MODEL_FILES for path in source.glob(pattern)}:
                shutil.copyfile(path, space / "models" / name / path.name)


def list_requirements() -> str:
    """Return the packages of `bert-snli[serve]` in the installed versions, as lines of requirements.txt.

    PyPI does not have local versions such as `2.8.0+cpu`, so their suffix is left out.
    """
    requirements = map(Requirement, metadata.requires("bert-snli") or [])
    names = [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": "serve"})]
    return "".join(f"{name}=={metadata.version(name).split('+')[0]}\n" for name in sorted(names))
